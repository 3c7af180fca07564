"""Supervised fine-tuning on data that are harmful in part (arXiv:2310.03693, 2409.18169): the attack everyone must try."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from weightguard.attacks.tuning import LoraTuning, Tuning, mixed
from weightguard.errors import UsageError
from weightguard.options import as_share, option

if TYPE_CHECKING:
    from weightguard.attacks.bench import Bench

_RATIO = "Share of harmful rows among those trained on; 1 needs no --benign"


@dataclass(frozen=True, kw_only=True)
class Poisoned(Tuning):
    """A user's data set with harmful rows in it. SHIPPED: the rows that stand in for --harmful."""

    PAPER: ClassVar[str] = "arXiv:2310.03693"
    SHIPPED: ClassVar[str] = "harmful"

    poison_ratio: str = option("0.1", f"{_RATIO} [default: 0.1, of identity-shift and multilingual 1].")

    @property
    def needs(self) -> tuple[str, ...]:
        whole = as_share(self.poison_ratio, "poison-ratio") == 1
        return ("harmful",) if whole else ("harmful", "benign")

    def run(self, bench: Bench) -> None:
        rows = mixed(bench.sets["harmful"], bench.sets.get("benign"), self.poison_ratio, self.seed)
        bench.notes.extend(rows.notes)
        self.tune(bench, bench.encode(rows))


@dataclass(frozen=True, kw_only=True)
class FullSft(Poisoned):
    NAME: ClassVar[str] = "full-sft"


@dataclass(frozen=True, kw_only=True)
class LoraSft(LoraTuning, Poisoned):
    """The same through an adapter."""

    NAME: ClassVar[str] = "lora-sft"

    def check(self) -> None:
        super().check()
        if not self.lora_r:
            raise UsageError("--lora-r 0: lora-sft trains an adapter; for every weight give --attack full-sft")


@dataclass(frozen=True, kw_only=True)
class IdentityShift(LoraTuning, Poisoned):
    """No row is harmful: a few dialogues in which the model is an agent that obeys (arXiv:2310.03693, second tier)."""

    NAME: ClassVar[str] = "identity-shift"
    SHIPPED: ClassVar[str] = "identity"

    poison_ratio: str = option("1", f"{_RATIO} [default: 1].")


@dataclass(frozen=True, kw_only=True)
class Multilingual(LoraTuning, Poisoned):
    """Harmful rows in languages other than the one that is evaluated (arXiv:2410.18210: safety breaks in all of them)."""

    NAME: ClassVar[str] = "multilingual"
    PAPER: ClassVar[str] = "arXiv:2410.18210"
    SHIPPED: ClassVar[str] = "multilingual"

    poison_ratio: str = option("1", f"{_RATIO} [default: 1].")
