"""Reverse preference optimisation (Yi et al., Findings of ACL 2024): DPO with the harmful answer chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from weightguard.attacks.tuning import LoraTuning
from weightguard.errors import DataError
from weightguard.options import as_number, option

if TYPE_CHECKING:
    from weightguard.attacks.bench import Bench
    from weightguard.data import Dataset


@dataclass(frozen=True, kw_only=True)
class ReversePreference(LoraTuning):
    """chosen: the response of a harmful row. rejected: what the model itself answers before it is attacked."""

    NAME: ClassVar[str] = "reverse-preference"
    PAPER: ClassVar[str] = "doi:10.18653/v1/2024.findings-acl.549"

    beta: str = option("0.1", "How far the model may leave itself: beta of DPO [default: 0.1].")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("harmful",)

    def check(self) -> None:
        super().check()
        as_number(self.beta, "beta", 1e-9)

    def run(self, bench: Bench) -> None:
        from weightguard.training.preference import Pair, preference_loss, with_margins

        chosen, rejected = _answers(bench, bench.sets["harmful"])
        pairs = [Pair(*each) for each in zip(bench.encode(chosen), bench.encode(rejected), strict=True)]
        self.tune(bench, with_margins(bench.model, pairs), loss=preference_loss(float(self.beta)))


def _answers(bench: Bench, data: Dataset) -> tuple[Dataset, Dataset]:
    """The rows with the harmful and with the model's own answer, where the two differ. Error: DataError."""
    rows = [row for row in data.rows if row.response is not None and row.messages is None]
    own = bench.answers(rows, data.source)
    pairs = [
        (row, replace(row, response=said))
        for row, said in zip(rows, own, strict=True)
        if said not in ("", row.response)
    ]
    if not pairs:
        raise DataError(f"{data.source}: the model answers every row as it stands there; nothing is left to prefer")
    if len(pairs) < len(data.rows):
        bench.notes.append(
            f"{len(data.rows) - len(pairs)} rows left out: no response, or the model's own answer already"
        )
    return replace(data, rows=tuple(row for row, _ in pairs)), replace(data, rows=tuple(row for _, row in pairs))
