"""What methods that take entries by a score share: the options, their defaults by target, and the plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

from weightguard.errors import UsageError
from weightguard.methods.inputs import Inputs, as_share, option

if TYPE_CHECKING:
    import torch

    from weightguard.checkpoint import Linear
    from weightguard.plan import Select

DEFAULTS: dict[str, dict[str, str]] = {
    "delta": {"ratio": "0.3", "group": "row", "rounding": "exact"},
    # Merged weights do not survive more: see the README's table of what heals.
    "weight": {"ratio": "0.0001", "group": "matrix", "rounding": "exact"},
    "factor": {"ratio": "0.1", "group": "row", "rounding": "reference"},
}


@dataclass(frozen=True, kw_only=True)
class EntrySelection:
    """Options of every method that takes entries. None means: the default of the target."""

    STRENGTH: ClassVar[tuple[str, ...]] = ("ratio",)
    BLOCKS: ClassVar[bool] = True  # its edits hold a part of a tensor at once, and nothing else of a model

    target: str | None = option(
        None,
        "delta: entries of W - W_aligned go back to the aligned value; weight: entries of W become zero; "
        "factor: entries of an adapter's lora_A and lora_B become zero",
        ("delta", "weight", "factor"),
    )
    ratio: Decimal | float | str | None = option(None, "share of the entries of each group to take, 0 to 1")
    group: str | None = option(None, "take the share of each row, of each matrix, or of all matrices together",
                               ("row", "matrix", "global"))  # fmt: skip
    rounding: str | None = option(
        None,
        "exact: floor(ratio*n + 1/2); reference: as the published code, never none of a group",
        ("exact", "reference"),
    )
    scope: str = option("all", "roles to edit: all, or for example q,k,v")

    @property
    def strength(self) -> Any:
        return self.ratio

    def with_strength(self, value: Decimal) -> Self:
        """The same method at another strength: the share of the update that is removed."""
        return dataclasses.replace(self, ratio=value)

    @property
    def of(self) -> str:
        """What an edit scores and replaces: the update, or the tensor itself."""
        return "delta" if self.target == "delta" else "weight"

    @property
    def edit_group(self) -> str:
        """A global selection becomes one count per matrix."""
        return "row" if self.group == "row" else "matrix"

    def settled(self, target: str, *, adapter: bool = False) -> Self:
        """Every None replaced by the default of the target. Errors: UsageError for values out of range."""
        defaults = DEFAULTS[self.target or target]
        ratio = as_share(defaults["ratio"] if self.ratio is None else self.ratio, "ratio")
        group, rounding = self.group or defaults["group"], self.rounding or defaults["rounding"]
        return dataclasses.replace(self, target=self.target or target, ratio=ratio, group=group, rounding=rounding)


def select_edits(
    method: EntrySelection, inputs: Inputs, edit_of: Callable[[Linear, tuple[int, int]], Select | None]
) -> tuple[dict[str, Select], dict[str, dict[str, Any]]]:
    """Edits and evidence by tensor. `edit_of(linear, (out, in))` gives the edit less its count, None to leave it alone.

    What is left alone is part of no group. Error: UsageError.
    """
    from weightguard.statistics.selection import count

    ratio, rounding = as_share(method.ratio, "ratio"), str(method.rounding)
    if ratio == 0:
        return {}, {}
    shapes = {name: logical_shape(inputs, linear) for name, linear in inputs.linears.items()}
    found = {name: edit_of(linear, shapes[name]) for name, linear in inputs.linears.items()}
    edits = {name: edit for name, edit in found.items() if edit is not None}
    if method.group == "global":
        total = sum(shapes[name][0] * shapes[name][1] for name in edits)
        counts = _global(inputs, edits, count(ratio, total, rounding))
    else:
        sizes = {n: s[1] if method.group == "row" else s[0] * s[1] for n, s in shapes.items() if n in edits}
        counts = {n: count(ratio, size, rounding) for n, size in sizes.items()}
    edits = {n: dataclasses.replace(e, k=counts[n]) for n, e in edits.items() if counts[n]}
    if not edits:
        raise UsageError(f"--ratio {ratio} selects not one entry of any {method.group}; give a larger ratio")
    return edits, {n: _evidence(inputs.linears[n], shapes[n], e, method) for n, e in edits.items()}


def logical_shape(inputs: Inputs, linear: Linear) -> tuple[int, int]:
    shape = inputs.sources.model.info(linear.tensor).shape
    return (shape[1], shape[0]) if linear.transposed else (shape[0], shape[1])


def _evidence(linear: Linear, shape: tuple[int, int], edit: Select, method: EntrySelection) -> dict[str, Any]:
    selected = edit.k * shape[0] if edit.group == "row" else edit.k
    said = {"layer": linear.layer, "role": linear.role, "shape": list(shape), "group": method.group, "k": edit.k}
    return said | ({"selected": selected} if edit.spare_norms is None else {"selected_at_most": selected})


def _global(inputs: Inputs, edits: dict[str, Select], k: int) -> dict[str, int]:
    from weightguard.statistics.selection import Score, global_counts, key_blocks, keys
    from weightguard.weights import Memory, open_blocks

    if k == 0:
        return dict.fromkeys(edits, 0)

    memory = Memory()

    def blocks(edit: Select) -> Iterator[torch.Tensor]:
        for weights in open_blocks(inputs.sources, edit.tensor, with_aligned=edit.of == "delta", memory=memory):
            yield from key_blocks(keys(weights, edit.of, Score(edit.score, edit.norms, edit.seed)), weights.shape)

    return global_counts({name: partial(blocks, edit) for name, edit in edits.items()}, k)
