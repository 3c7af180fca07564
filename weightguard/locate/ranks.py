"""Safety ranks orthogonal to utility ranks (ActSVD, arXiv:2402.05162, section 3.2).

Π_s projects on the top r_s output directions of a linear on safety data, Π_u on the top r_u on utility data; what the paper
removes is (I − Π_u) Π_s W, kept here as left·right. Published ranks are counts; here they are shares of min(out, in), so
that narrow keys and values (GQA) get their own count, and the default shares are ours. Directions come from Gram matrices,
so nothing is drawn at random.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, Self

from weightguard.errors import DataError, UsageError
from weightguard.locate.material import Found, Material
from weightguard.options import as_share, option
from weightguard.parts import Part

if TYPE_CHECKING:
    import torch

    from weightguard.checkpoint import Linear
    from weightguard.statistics.grams import Grams

GRAM_BYTES = 4 << 30  # Gram matrices kept at one time, 8·in² bytes an input site, for both roles together


@dataclass(frozen=True, kw_only=True)
class SafetyRanks:
    """The part of every linear that writes into safety directions of its output and not into utility directions."""

    NAME: ClassVar[str] = "rank"
    PAPER: ClassVar[str] = "arXiv:2402.05162"
    TOKENS: ClassVar[str] = "response"

    top_safety: Decimal | float | str = option("0.1", "share of the ranks that counts as important on --safety data")
    top_utility: Decimal | float | str = option("0.2", "share of the ranks that counts as important on --utility data")
    scope: str = option("all", "roles to look at: all, or for example q,k,v")

    def settled(self) -> Self:
        """Checked. Error: UsageError."""
        if not as_share(self.top_safety, "top-safety"):
            raise UsageError("--top-safety 0 marks nothing; give a share above 0")
        as_share(self.top_utility, "top-utility")
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        return ("safety", "utility") if as_share(self.top_utility, "top-utility") else ("safety",)

    def find(self, material: Material) -> Found:
        """Errors: UsageError when the share of the safety ranks is no rank of any tensor; DataError when nothing is left."""
        ranks = {name: self._ranks(material.shape(name)) for name in material.linears}
        if not any(safety for safety, _ in ranks.values()):
            raise UsageError(f"--top-safety {self.top_safety} is not one rank of any tensor; give a larger share")
        parts: dict[str, Part] = {}
        for some in _chunks(material):
            grams = {role: _grams(material, role, some) for role in self.needs}
            for name in some:
                if ranks[name][0]:
                    parts[name] = _part(material, name, grams, ranks[name])
        parts = {name: part for name, part in parts.items() if part.left is not None and part.left.any()}
        if not parts:
            raise DataError("the safety directions lie within the utility directions; give a smaller --top-utility")
        said = {name: {"safety": s, "utility": u} for name, (s, u) in ranks.items()}
        return Found(parts, {"ranks": said, "counted_tokens": {r: material.data[r].counted_tokens for r in self.needs}})

    def _ranks(self, shape: tuple[int, int]) -> tuple[int, int]:
        from weightguard.statistics.selection import count

        shares = as_share(self.top_safety, "top-safety"), as_share(self.top_utility, "top-utility")
        safety, utility = (count(share, min(shape), "exact") for share in shares)
        return safety, utility


def _chunks(material: Material) -> Iterator[dict[str, Linear]]:
    """Linears of a few layers at a time: each chunk costs a forward pass a role, and the Grams of its input sites."""
    layers: dict[int, dict[str, Linear]] = {}
    for name, linear in material.linears.items():
        layers.setdefault(linear.layer, {})[name] = linear
    chunk: dict[str, Linear] = {}
    held = 0
    for layer in layers.values():
        size = 16 * sum({it.site: material.shape(name)[1] ** 2 for name, it in layer.items()}.values())
        if chunk and held + size > GRAM_BYTES:
            yield chunk
            chunk, held = {}, 0
        chunk, held = chunk | layer, held + size
    yield chunk


def _grams(material: Material, role: str, linears: dict[str, Linear]) -> Grams:
    from weightguard.statistics.grams import collect_grams

    step = material.step("calibrate")
    return collect_grams(material.model, material.checkpoint.config, linears, material.data[role].rows, step)


def _part(material: Material, name: str, grams: dict[str, Any], ranks: tuple[int, int]) -> Part:
    weight = material.weights(name).logical
    left, right = removed(weight, grams["safety"].gram(name), ranks[0],
                          grams["utility"].gram(name) if ranks[1] else None, ranks[1])  # fmt: skip
    return Part("rank", material.shape(name), left=left.float().numpy(), right=right.float().numpy())


def removed(
    weight: torch.Tensor, safety: torch.Tensor, safety_rank: int, utility: torch.Tensor | None, utility_rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(I − Π_u) Π_s W as left (out, k) · right (k, in), float64, k the smaller of r_s and out − r_u.

    weight (out, in), Grams (in, in) of its inputs on either set; no utility Gram: Π_u = 0.
    """
    from weightguard.statistics.grams import spectrum, top_directions

    wide, u_s = weight.double(), top_directions(weight, safety, safety_rank)
    if utility is None:
        return u_s, u_s.T @ wide
    directions = spectrum(weight, utility)[1]
    u_u, rest = directions[:, :utility_rank], directions[:, utility_rank:]
    if rest.shape[1] < safety_rank:
        return rest, (rest.T @ u_s) @ (u_s.T @ wide)
    return u_s - u_u @ (u_u.T @ u_s), u_s.T @ wide
