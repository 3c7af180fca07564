"""Control: neurons drawn at random, as many as another kind marks. What does not differ from them means nothing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, ClassVar, Self

from weightguard import bits
from weightguard.errors import MismatchError, UsageError
from weightguard.locate.material import Found, Material
from weightguard.locate.scores import GROUPS, top_entries
from weightguard.locate.units import UNITS, counted_units, default_group, top_units, unit_groups, unit_parts
from weightguard.options import as_share, option
from weightguard.parts import Neurons, Part

if TYPE_CHECKING:
    import numpy
    import torch

    from weightguard.kernels.reference import Keys


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A share of the weights or units at random, or with --like exactly as many of each tensor as other neurons mark."""

    NAME: ClassVar[str] = "random"
    PAPER: ClassVar[str] = "control"
    TOKENS: ClassVar[str] = "response"

    units: str = option(
        "entries", "mark single weights, whole rows and columns, or attention heads", ("entries", *UNITS)
    )
    top_safety: Decimal | float | str = option("0.03", "share that is drawn")
    group: str | None = option(
        None,
        "draw the share of each matrix (of units: of each tensor or layer), row, or of all [default: matrix; heads: global]",
        GROUPS,
    )
    seed: int = option(0, "seed of the draw")
    scope: str = option("all", "roles to look at: all, or for example q,k,v")

    def settled(self) -> Self:
        """Checked. Error: UsageError."""
        if not as_share(self.top_safety, "top-safety"):
            raise UsageError("--top-safety 0 marks nothing; give a share above 0")
        if self.units != "entries" and self.group == "row":
            raise UsageError("--group row ranks the entries of a row; with --units give matrix or global")
        return replace(self, group=self.group or default_group(self.units))

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    def find(self, material: Material) -> Found:
        """Errors: UsageError when the share takes nothing, MismatchError when --like is of another model."""
        if material.like is not None:
            return Found(self._like(material, material.like))
        share = as_share(self.top_safety, "top-safety")
        if self.units == "entries":
            masks = top_entries(material, self._opener(material), share, str(self.group), "top-safety")
            return Found({n: Part("entries", material.shape(n), m) for n, m in masks.items() if m.any()})
        groups = unit_groups(material, self.units)
        scores = {name: self._scores(name, group.count) for name, group in groups.items()}
        chosen = top_units(scores, share, str(self.group), "top-safety")
        return Found(unit_parts(groups, chosen), {"units": counted_units(material, groups, chosen)})

    def _opener(self, material: Material):
        from weightguard.kernels import ops

        def opened(name: str) -> tuple[Keys, tuple[int, int]]:
            out, width = material.shape(name)
            return lambda i, j: ops.random_keys(seed_of(name, self.seed), i, j, width), (out, width)

        return opened

    def _scores(self, name: str, count: int) -> numpy.ndarray:
        return self._keys(name, count).double().numpy()[0]

    def _keys(self, name: str, count: int) -> torch.Tensor:
        from weightguard.kernels import ops

        return ops.random_keys(seed_of(name, self.seed), 0, 1, count)

    def _like(self, material: Material, like: Neurons) -> dict[str, Part]:
        parts = {}
        for name, part in like.parts.items():
            if name not in material.linears or material.shape(name) != part.shape:
                raise MismatchError(
                    f"--like marks tensor {name!r} as {list(part.shape)}, which is not so in this model"
                )
            if part.form == "rate":
                raise UsageError("--like holds learning rates, which cannot be drawn; give neurons that mark something")
            parts[name] = self._directions(material, name, part) if part.form == "rank" else self._lines(name, part)
        return parts

    def _lines(self, name: str, part: Part) -> Part:
        """As many entries, rows or columns at random."""
        size = {"entries": part.shape[0] * part.shape[1], "rows": part.shape[0], "columns": part.shape[1]}[part.form]
        assert part.mask is not None
        return Part(part.form, part.shape, self._drawn(name, size, int(bits.unpacked(part.mask, (size,)).sum())))

    def _directions(self, material: Material, name: str, part: Part) -> Part:
        """Q Qᵀ W for as many orthonormal output directions, drawn uniformly."""
        import torch

        assert part.left is not None
        generator = torch.Generator().manual_seed(seed_of(name, self.seed))
        q = torch.linalg.qr(torch.randn(part.left.shape, generator=generator, dtype=torch.float64)).Q
        right = q.T @ material.weights(name).logical.double()
        return Part("rank", part.shape, left=q.float().numpy(), right=right.float().numpy())

    def _drawn(self, name: str, size: int, k: int) -> numpy.ndarray:
        from weightguard.kernels import ops

        keys = self._keys(name, size)
        return bits.packed(next(ops.masks(lambda i, j: keys, (1, size), k, "matrix"))[2].numpy())


def seed_of(tensor: str, seed: int) -> int:
    """32 bits from the seed and a name, so that tensors of one shape draw differently."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{tensor}".encode()).digest()[:4], "little")
