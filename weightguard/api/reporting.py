"""What a repair says about itself: what changed per role, where the data came from, the line that does it again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from weightguard.checkpoint.naming import ROLES

if TYPE_CHECKING:
    from weightguard.api.strength import Calibration

ORDER = (*ROLES, "merged")


@dataclass(frozen=True)
class RoleChange:
    """Sums over the edited tensors of one role, or of "all". Norms are Frobenius norms over all of them together.

    `update_left`: ||after - aligned|| / ||before - aligned||, None where there is no aligned reference.
    """

    role: str
    tensors: int
    entries: int
    selected: int
    changed: int
    change_share: float
    change_over_weight: float
    update_left: float | None


@dataclass(frozen=True)
class Report:
    """`notes`: where things came from and what was left out, in words. `changes` is empty after a dry run.

    `refusals`: category -> (refused, prompts) of the repaired model on its safety rows, where those were judged.
    """

    notes: tuple[str, ...]
    command: str
    aligned: str | None
    changes: tuple[RoleChange, ...] = ()
    calibration: Calibration | None = None
    refusals: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def changes_of(edits: Mapping[str, Mapping[str, Any]]) -> tuple[RoleChange, ...]:
    """One line a role in the order of the table of roles, then "all"; nothing when nothing was edited."""
    if not edits:
        return ()
    by_role: dict[str, list[Mapping[str, Any]]] = {}
    for edit in edits.values():
        by_role.setdefault(edit.get("role", "merged"), []).append(edit)
    ordered = sorted(by_role.items(), key=lambda item: role_order(item[0]))
    return (*(_summed(role, group) for role, group in ordered), _summed("all", list(edits.values())))


def role_order(role: str) -> int:
    """Where a role stands in tables; unknown ones last."""
    return ORDER.index(role) if role in ORDER else len(ORDER)


def _summed(role: str, edits: list[Mapping[str, Any]]) -> RoleChange:
    entries, selected, changed = (sum(e[key] for e in edits) for key in ("entries", "selected", "changed"))
    weight, change = _norm(edits, "weight_norm"), _norm(edits, "change_norm")
    before = _norm(edits, "update_norm_before")
    return RoleChange(
        role, len(edits), entries, selected, changed,
        change_share=changed / entries if entries else 0.0,
        change_over_weight=change / weight if weight else 0.0,
        update_left=_norm(edits, "update_norm_after") / before if before else None,
    )  # fmt: skip


def _norm(edits: Iterable[Mapping[str, Any]], key: str) -> float:
    return math.sqrt(math.fsum(e.get(key, 0.0) ** 2 for e in edits))
