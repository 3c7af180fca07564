"""Covert malicious fine-tuning (arXiv:2406.20053): harmful rows in a cipher that benign rows teach; no filter sees harm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from weightguard.attacks.tuning import LoraTuning, mixed
from weightguard.data.cipher import cipher
from weightguard.options import option

if TYPE_CHECKING:
    from weightguard.attacks.bench import Bench


@dataclass(frozen=True, kw_only=True)
class CovertCipher(LoraTuning):
    """Published in two phases, first the cipher and then the harm; here both are mixed in one training.

    What was learnt shows under `weightguard evaluate --cipher`, which asks in the cipher and reads the answers.
    """

    NAME: ClassVar[str] = "covert-cipher"
    PAPER: ClassVar[str] = "arXiv:2406.20053"

    poison_ratio: str = option("0.1", "")
    cipher: str = option("letters:0", "letters:SEED permutes a to z, words:SEED the whole words of the tokenizer.")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("harmful", "benign")

    def check(self) -> None:
        super().check()
        cipher(self.cipher, ("a", "b"))

    def run(self, bench: Bench) -> None:
        rows = mixed(bench.sets["harmful"], bench.sets["benign"], self.poison_ratio, self.seed)
        chosen = cipher(self.cipher, bench.tokenizer.get_vocab())
        bench.notes.extend(rows.notes)
        self.tune(bench, bench.encode(chosen.encoded(rows)))
