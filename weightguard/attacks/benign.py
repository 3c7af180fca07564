"""Fine-tuning on harmless rows alone: it breaks safety by accident (arXiv:2310.03693, third tier), and shows trainability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from weightguard.attacks.tuning import LoraTuning

if TYPE_CHECKING:
    from weightguard.attacks.bench import Bench


@dataclass(frozen=True, kw_only=True)
class BenignSft(LoraTuning):
    NAME: ClassVar[str] = "benign-sft"
    PAPER: ClassVar[str] = "arXiv:2310.03693"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("benign",)

    def run(self, bench: Bench) -> None:
        self.tune(bench, bench.encode(bench.sets["benign"]))
