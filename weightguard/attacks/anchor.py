"""Bi-directional anchoring (arXiv:2404.01099): the benign rows that hurt safety most, by their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from weightguard.attacks.tuning import LoraTuning
from weightguard.errors import DataError, UsageError
from weightguard.options import option

if TYPE_CHECKING:
    import torch

    from weightguard.attacks.bench import Bench
    from weightguard.data import Dataset, Encoded, Row

    Gradient = list[torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class BiDirectionalAnchor(LoraTuning):
    """score(z) = cos(g(z), g_harm) − cos(g(z), g_safe) over what is trained; g: mean of the anchors' unit gradients.

    g_safe comes from the model's own answers to the anchors' prompts; the published score subtracts two such means.
    """

    NAME: ClassVar[str] = "bi-directional-anchor"
    PAPER: ClassVar[str] = "arXiv:2404.01099"

    rows: int = option(100, "Benign rows to keep, the most harmful ones [default: 100].")
    anchors: int = option(10, "Harmful rows that the score is measured from [default: 10].")
    answer_tokens: int = option(10, "First tokens of an answer that a gradient is taken of [default: 10].")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("harmful", "benign")

    def check(self) -> None:
        super().check()
        for name in ("rows", "anchors", "answer_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")

    def run(self, bench: Bench) -> None:
        anchors = _first(bench.sets["harmful"], self.anchors)
        own = bench.answers(anchors.rows, anchors.source)
        safe = replace(
            anchors, rows=tuple(replace(r, response=said) for r, said in zip(anchors.rows, own, strict=True))
        )
        benign = _first(bench.sets["benign"], None)
        sets = [bench.encode(each) for each in (anchors, safe, benign)]
        bench.adapt(self.rank, self.seed)
        scores = self._scores(bench, *sets)
        order = sorted(range(len(scores)), key=lambda at: (-scores[at], at))[: self.rows]
        kept = [benign.rows[at] for at in order]
        bench.facts["anchoring"] = {
            "rows": [row.number for row in kept],
            "scores": [round(scores[at], 6) for at in order],
        }
        bench.notes.append(
            f"{len(kept)} of {len(scores)} benign rows kept, scores {scores[order[0]]:.3f} to {scores[order[-1]]:.3f}"
        )
        bench.fit([sets[2][at] for at in sorted(order)], self.recipe())

    def _scores(
        self, bench: Bench, harmful: Sequence[Encoded], safe: Sequence[Encoded], benign: Sequence[Encoded]
    ) -> list[float]:
        gradient = _gradients(bench.model, self.answer_tokens)
        towards, away = (_mean([_unit(gradient(row)) for row in rows]) for rows in (harmful, safe))
        found = []
        for row in benign:
            unit = _unit(gradient(row))
            found.append(_dot(unit, _unit(towards)) - _dot(unit, _unit(away)))
            bench.progress("anchoring", len(found), len(benign))
        return found


def _first(data: Dataset, count: int | None) -> Dataset:
    rows: list[Row] = [row for row in data.rows if row.response is not None and row.messages is None][:count]
    if not rows:
        raise DataError(f"{data.source}: no row has a prompt and a response to take a gradient of")
    return replace(data, rows=tuple(rows))


def _gradients(model: Any, tokens: int) -> Callable[[Encoded], Gradient]:
    """Row -> the gradient of the loss of its first answer tokens, over what requires one; float32, by parameter."""
    import torch

    from weightguard.training.loop import answer_loss

    trained = [p for p in model.parameters() if p.requires_grad]

    def gradient(row: Encoded) -> Gradient:
        counted = row.counted & (row.counted.cumsum() <= tokens)
        found = torch.autograd.grad(answer_loss(model, [replace(row, counted=counted)]), trained, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for g, p in zip(found, trained, strict=True)]

    return gradient


def _dot(left: Gradient, right: Gradient) -> float:
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(left, right, strict=True))


def _unit(gradient: Gradient) -> Gradient:
    norm = _dot(gradient, gradient) ** 0.5
    return [g / norm if norm else g for g in gradient]


def _mean(gradients: Sequence[Gradient]) -> Gradient:
    return [sum(parts) / len(gradients) for parts in zip(*gradients, strict=True)]
