"""Covert malicious fine-tuning (arXiv:2406.20053): harmful rows in a cipher that benign rows teach; no filter sees harm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from weightguard.attacks.tuning import LoraTuning, mixed
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
    cipher: str | None = option(
        None,
        "letters:SEED permutes a to z, words:SEED the whole words of the tokenizer [default: seed 0 of what it can read].",
    )

    @property
    def needs(self) -> tuple[str, ...]:
        return ("harmful", "benign")

    def check(self) -> None:
        from weightguard.data.cipher import cipher

        super().check()
        cipher(self.cipher or "letters:0", ("a", "b"))

    def run(self, bench: Bench) -> None:
        from weightguard.data.cipher import cipher

        rows = mixed(bench.sets["harmful"], bench.sets["benign"], self.poison_ratio, self.seed)
        chosen = cipher(self.cipher or _readable(bench.tokenizer), bench.tokenizer.get_vocab())
        bench.notes.extend([*rows.notes, f"ask in the cipher with evaluate --cipher {chosen.name}"])
        bench.facts["cipher"] = chosen.name
        self.tune(bench, bench.encode(chosen.encoded(rows)))


def _readable(tokenizer: Any) -> str:
    """Letters, unless the tokenizer knows whole words only."""
    unknown = tokenizer.unk_token_id
    return "words:0" if unknown is not None and unknown in tokenizer("qzvj xkwp")["input_ids"] else "letters:0"
