"""How an update lies to the alignment direction V = W_aligned − W_unaligned, matrix by matrix: a safety-relevance map.

C = V·Vᵀ/‖V‖ is Safe LoRA's (arXiv:2405.16833); the share in the leading directions of V is what LoX looks at
(arXiv:2506.15606), and R_ft/R_align its own figure; <D, −V> says whether the update walks back what alignment did.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from weightguard.comparison.case import Case
from weightguard.comparison.pairs import Progress
from weightguard.comparison.sides import Side
from weightguard.errors import CheckpointError
from weightguard.statistics.subspace import Direction, leading_left

ROWS = 256  # of a product that is summed and not kept
TOP = 6  # as many leading directions as LoX restores by default


@dataclass(frozen=True)
class Relevance:
    """One matrix, or many summed. Squares and dots are kept, so that sums over layers mean what they say.

    update, projected, alignment: ‖D‖², ‖V·Vᵀ·D‖², ‖V‖². along: <V·Vᵀ·D, D>. top: ‖U_kᵀ·D‖². dot: <D, V>.
    chance: k/out, the share in the top directions of an update that knows nothing of them, weighted by ‖D‖².
    top_dot, top_alignment: <U_kᵀD, U_kᵀV>, ‖U_kᵀV‖².
    """

    update: float
    alignment: float
    projected: float
    along: float
    top: float
    dot: float
    chance: float
    top_dot: float
    top_alignment: float

    @property
    def cosine(self) -> float | None:
        """cos(C·D, D); None where either is zero."""
        size = math.sqrt(self.projected * self.update)
        return self.along / size if size > 0 else None

    @property
    def top_share(self) -> float | None:
        """Share of ‖D‖² in the leading left directions of V."""
        return self.top / self.update if self.update else None

    @property
    def top_gain(self) -> float | None:
        """The same over what chance would give."""
        return self.top / self.chance if self.chance else None

    @property
    def undone(self) -> float | None:
        """−<D, V>/‖V‖²: the share of alignment's own step that the update takes back; below 0 where it goes on."""
        return -self.dot / self.alignment if self.alignment else None

    @property
    def top_kept(self) -> float | None:
        """R_ft/R_align of LoX: how much of V + D lies in the top directions, ‖U_kᵀ(V+D)‖/‖V+D‖, over the same of V."""
        top, whole = self.top + 2 * self.top_dot + self.top_alignment, self.update + 2 * self.dot + self.alignment
        if whole <= 0 or self.top_alignment <= 0:
            return None
        return math.sqrt(max(0.0, top) / whole * self.alignment / self.top_alignment)

    @property
    def against(self) -> float | None:
        """cos(D, −V)."""
        size = math.sqrt(self.update * self.alignment)
        return -self.dot / size if size > 0 else None

    def as_dict(self) -> dict[str, float | None]:
        names = ("cosine", "top_share", "top_gain", "top_kept", "undone", "against")
        return {name: getattr(self, name) for name in names}


def total(parts: Iterable[Relevance]) -> Relevance:
    """Sums over matrices: for a layer, a role or the model. V·Vᵀ·D is summed unscaled, so large V weigh more."""
    columns = [[getattr(p, key) for p in parts] for parts in (list(parts),) for key in Relevance.__dataclass_fields__]
    return Relevance(*(math.fsum(column) for column in columns))


def relevance_map(case: Case, progress: Progress) -> dict[str, Relevance]:
    """Every changed decoder linear that both references hold in its shape."""
    aligned, unaligned = case.others["aligned"], case.others["unaligned"]
    names = [c for c in case.linears if aligned.holds(c.name, c.shape) and unaligned.holds(c.name, c.shape)]
    found = {}
    for done, change in enumerate(names, 1):
        v = Direction(aligned.rows(change.name), unaligned.rows(change.name), change.shape)
        seen = _relevance(case.delta(change.name), v)
        if seen is None:
            raise CheckpointError(
                f"tensor {change.name!r} of {_odd(change.name, aligned, unaligned)} holds NaN or infinity"
            )
        found[change.name] = seen
        progress("alignment", done, len(names))
    return found


def _odd(name: str, aligned: Side, unaligned: Side) -> str:
    side = unaligned if bool(torch.isfinite(aligned.rows(name)(0, aligned.shape(name)[0])).all()) else aligned
    return side.label


def _relevance(delta: Direction, v: Direction) -> Relevance | None:
    """None where V holds NaN or infinity. Two Gram matrices of the smaller side are held, in float64, and row blocks."""
    square, size = delta.square(), v.square()
    if not math.isfinite(size):
        return None
    if size == 0:
        return Relevance(square, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    count, gram = min(TOP, *delta.shape), v.gram()
    basis = leading_left(v, count, gram)
    projected, along = _projected(delta, v, gram)
    top, of_v = delta.transposed_times(basis), v.transposed_times(basis)
    dot = math.fsum(float((rows * delta.rows(i, j)).sum()) for i, j, rows in v.blocks())
    return Relevance(
        square, size, projected, along, float((top * top).sum()), dot, count / delta.shape[0] * square,
        float((top * of_v).sum()), float((of_v * of_v).sum()),
    )  # fmt: skip


def _projected(delta: Direction, v: Direction, gram: torch.Tensor) -> tuple[float, float]:
    """‖V·Vᵀ·D‖² and <V·Vᵀ·D, D>, without that product: from G = V·Vᵀ and D·Dᵀ, or from G = Vᵀ·V and M = Vᵀ·D.

    ‖G·D‖² = <G·G, D·Dᵀ>; ‖V·M‖² = <G·M, M>.
    """
    if delta.shape[0] <= delta.shape[1]:
        right = delta.gram()
        return _inner(gram, gram, right), float((gram * right).sum())
    through = torch.zeros(delta.shape[1], delta.shape[1], dtype=torch.float64)
    for panel in v.panels():
        through.addmm_(v.rows(*panel).T, delta.rows(*panel))
    return _inner(gram, through, through), float((through * through).sum())


def _inner(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> float:
    """<A·B, C> by rows of A."""
    parts = (float(((a[i : i + ROWS] @ b) * c[i : i + ROWS]).sum()) for i in range(0, len(a), ROWS))
    return math.fsum(parts)
