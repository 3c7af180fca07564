"""Safe LoRA: project the update of a fine-tuning on the alignment direction (arXiv:2405.16833).

Per linear V = W_aligned − W_unaligned, C = V·Vᵀ/‖V‖ (its equation 1), and where the cosine of C·B·A and B·A is at most
the threshold, B becomes C·B; of a full fine-tuning W_aligned + C·D. C as published is no projector: it grows with V, so
a small V makes it a rollback. Cosine, share kept and rank are said per module. The gate looks at unrounded cosines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, Self

from weightguard.errors import UsageError
from weightguard.methods.inputs import Inputs, as_share, option, settings

if TYPE_CHECKING:
    import torch

    from weightguard.plan import Edit, Plan
    from weightguard.statistics.subspace import Along


@dataclass(frozen=True)
class _Module:
    """One linear as measured. name: the tensor to edit. base: the full model's. along: None for an update of zero.

    directed: there is a direction to project on; rank and keeps_all are its projector's. Nothing as large as a tensor is
    kept, but of an adapter the projected lora_B.
    """

    name: str
    base: str
    along: Along | None
    directed: bool
    rank: int | None = None
    keeps_all: bool = False
    projected: torch.Tensor | None = None

    @property
    def counts(self) -> bool:
        """A module with an update and a direction to project it on."""
        return self.along is not None and self.directed


@dataclass(frozen=True, kw_only=True)
class SafeLora:
    """Project the update on what alignment changed, where both disagree most; an adapter stays an adapter."""

    NAME: ClassVar[str] = "safe-lora"
    PAPER: ClassVar[str] = "arXiv:2405.16833"
    NEEDS: ClassVar[tuple[str, ...]] = ("unaligned",)
    STRENGTH: ClassVar[tuple[str, ...]] = ("threshold", "number")
    HOLDS: ClassVar[int] = 48  # bytes per entry of the largest tensor, which is projected as a whole

    target: str | None = option(None, "factor: an adapter's lora_B is projected; delta: W - W_aligned is",
                                ("delta", "factor"))  # fmt: skip
    projector: str = option("paper", "paper: V*Vt/|V|; normalized: V*Vt/s1^2; exact: U*Ut of the leading directions of V",
                            ("paper", "exact", "normalized"))  # fmt: skip
    threshold: Decimal | float | str | None = option(None, "project where the cosine is at most this [default: 0.5]")
    number: int | None = option(None, "project the modules with the smallest cosines, exactly so many")
    projector_rank: int | None = option(
        None, "directions of the exact projector [default: all above the rounding floor]"
    )
    energy: Decimal | float | str | None = option(None, "share of |V|^2 that the exact projector's directions hold")
    no_alignment: str = option("error", "a module that alignment did not change: keep its update, drop it, or stop",
                               ("keep", "drop", "error"))  # fmt: skip
    strength: Decimal | float | str | None = option(None, "share of the modules to project, by smallest cosine")
    scope: str = option("all", "roles to edit: all, or for example q,k,v")

    def with_strength(self, value: Decimal) -> Self:
        return dataclasses.replace(self, strength=value, threshold=None, number=None)

    def settled(self, target: str, *, adapter: bool = False) -> Self:
        """Every None replaced by its default. Errors: UsageError for values out of range or at odds."""
        chosen = self.target or ("factor" if adapter else target)
        if chosen == "weight":
            raise UsageError("--method safe-lora projects an update; give --aligned, or an adapter")
        if self.threshold is not None and self.number is not None:
            raise UsageError("--threshold and --number both say what is projected; give one of them")
        threshold = self.threshold
        if threshold is None and self.number is None and self.strength is None:
            threshold = "0.5"
        if threshold is not None:
            threshold = _cosine(threshold)
        if self.number is not None and (type(self.number) is not int or self.number < 0):
            raise UsageError(f"--number {self.number}: a count of modules, 0 or more")
        energy = None if self.energy is None else as_share(self.energy, "energy")
        self._check_exact(energy)
        return dataclasses.replace(self, target=chosen, threshold=threshold, energy=energy)

    def _check_exact(self, energy: Decimal | None) -> None:
        if self.projector != "exact" and (self.projector_rank is not None or energy is not None):
            raise UsageError("--projector-rank and --energy choose directions of --projector exact")
        if self.projector_rank is not None and energy is not None:
            raise UsageError("--projector-rank and --energy both say how many directions; give one of them")
        if energy is not None and energy == 0:
            raise UsageError("--energy 0: would keep no direction; give a share above 0")

    def plan(self, inputs: Inputs) -> Plan:
        """The plan for settled options. Errors: UsageError, MismatchError."""
        from weightguard.plan import Plan
        from weightguard.statistics.loading import pinned_threads

        if self.number == 0 or (self.strength is not None and Decimal(str(self.strength)) == 0):
            return Plan(self.NAME, self.PAPER, str(self.target), settings(self), {})
        if "modules" not in inputs.kept:
            with pinned_threads(1):  # the last bits of a matrix product depend on it
                inputs.kept["modules"] = list(self._modules(inputs))
        modules: list[_Module] = inputs.kept["modules"]
        self._check_directions(modules)
        chosen = self._chosen([m for m in modules if m.counts])
        edits = {m.name: e for m in modules if (e := self._edit(m, m.name in chosen)) is not None}
        evidence = {m.name: self._said(inputs, m, m.name in chosen) for m in modules}
        return Plan(self.NAME, self.PAPER, str(self.target), settings(self), edits, evidence, _notes(modules))

    def _modules(self, inputs: Inputs) -> Iterator[_Module]:
        pairs = ((pair.b, base) for base, pair in inputs.factors.items() if pair.b in inputs.linears)
        for name, base in pairs if self.target == "factor" else ((n, n) for n in inputs.linears):
            yield self._measured(inputs, name, base)

    def _measured(self, inputs: Inputs, name: str, base: str) -> _Module:
        from weightguard.statistics.subspace import along, projector

        assert inputs.direction is not None
        energy = None if self.energy is None else float(self.energy)
        found = projector(inputs.direction(base), self.projector, self.projector_rank, energy)
        update, gram = _update(inputs, name, base)
        if found is None:
            return _Module(name, base, along(update, update, gram), directed=False)
        projected = found.project(update)
        seen, kept = along(update, projected, gram), projected if self.target == "factor" else None
        return _Module(name, base, seen, True, found.rank, found.keeps_all, kept)

    def _check_directions(self, modules: list[_Module]) -> None:
        lost = next((m for m in modules if m.along is not None and not m.directed), None)
        if lost is not None and self.no_alignment == "error":
            raise UsageError(
                f"tensor {lost.base!r} is the same in the aligned and the unaligned model, so there is nothing to "
                f"project on; choose --no-alignment keep or drop, or check the two models"
            )

    def _chosen(self, modules: list[_Module]) -> set[str]:
        from weightguard.statistics.selection import count

        ordered = sorted(modules, key=lambda m: (m.along.cosine, m.name) if m.along else (0.0, m.name))
        number = self.number
        if self.strength is not None:
            number = count(Decimal(str(self.strength)), len(ordered), "exact")
        if number is not None:
            if number > len(ordered):
                raise UsageError(f"--number {number}: {len(ordered)} modules have an update to project")
            return {m.name for m in ordered[:number]}
        limit = float(str(self.threshold))
        found = {m.name for m in ordered if m.along and m.along.cosine <= limit}
        if ordered and ordered[0].along and not found:
            lowest = f"{ordered[0].along.cosine:.4f} at {ordered[0].base}"
            raise UsageError(
                f"--threshold {self.threshold}: every cosine is above it, the lowest is {lowest}; give more, or --number"
            )
        return found

    def _edit(self, module: _Module, chosen: bool) -> Edit | None:
        from weightguard.plan import ProjectDelta, Replace, Scale

        if module.along is None:
            return None
        if not module.directed:
            of = "weight" if self.target == "factor" else "delta"
            return Scale(module.name, of, 0.0) if self.no_alignment == "drop" else None
        if not chosen:
            return None
        if module.projected is not None:
            return Replace(module.name, module.projected.float().numpy())
        return ProjectDelta(module.name, "delta", self.projector, module.rank)

    def _said(self, inputs: Inputs, module: _Module, chosen: bool) -> dict[str, Any]:
        linear = inputs.linears[module.name]
        shape = list(inputs.sources.model.info(module.name).shape)
        said = {"layer": linear.layer, "role": linear.role, "shape": shape, "module": module.base, "projected": chosen}
        if module.along is None:
            return {**said, "skipped": "the update is zero"}
        if not module.directed:
            return {**said, "skipped": "alignment did not change this module", "update_left": _left(self.no_alignment)}
        return said | {
            "cosine": module.along.cosine,
            "kept": module.along.kept,
            "rank": module.rank,
            "update_norm": module.along.norm,
            "update_left": module.along.kept if chosen else 1.0,
        }


def _left(policy: str) -> float:
    return 0.0 if policy == "drop" else 1.0


def _cosine(value: Decimal | float | str) -> Decimal:
    try:
        found = Decimal(str(value))
    except ArithmeticError:
        raise UsageError(f"--threshold {value}: not a number") from None
    if not found.is_finite() or not -1 <= found <= 1:
        raise UsageError(f"--threshold {value}: a cosine lies between -1 and 1")
    return found


def _update(inputs: Inputs, name: str, base: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(B, A·Aᵀ·s²) of a module of an adapter, or (D, None), both float64 where they are small and float32 where not."""
    from weightguard.weights import finite, open_weights

    if base in inputs.factors:
        pair = inputs.factors[base]
        a = finite(inputs.sources.model, pair.a).double() * pair.scaling
        return finite(inputs.sources.model, pair.b).double(), a @ a.T
    return open_weights(inputs.sources, name, with_aligned=True).whole_delta(), None


def _notes(modules: list[_Module]) -> tuple[str, ...]:
    """What a reader of the result has to know: projectors that project nothing away, modules without an update."""
    notes = []
    whole = [m for m in modules if m.keeps_all]
    if whole:
        notes.append(
            f"the exact projector of {len(whole)} modules (first: {whole[0].base}) keeps every direction and changes "
            f"nothing; give --energy or --projector-rank"
        )
    zero = [m for m in modules if m.along is None]
    if zero:
        notes.append(f"{len(zero)} modules (first: {zero[0].base}) have no update and were not counted")
    return tuple(notes)
