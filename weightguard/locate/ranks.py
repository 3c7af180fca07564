"""Safety ranks orthogonal to utility ranks (ActSVD, arXiv:2402.05162, section 3.2).

Π_s projects on the top r_s output directions of a linear on safety data, Π_u on the top r_u on utility data; what the paper
removes is (I − Π_u) Π_s W, kept here as left·right. Published ranks are counts; here they are shares of min(out, in), so
that narrow keys and values (GQA) get their own count, and the default shares are ours. Directions come from Gram matrices,
so nothing is drawn at random.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, ClassVar, Self

from weightguard.errors import DataError, UsageError
from weightguard.locate.material import Found, Material
from weightguard.options import as_share, option
from weightguard.parts import Part

if TYPE_CHECKING:
    import torch

    from weightguard.checkpoint import Linear
    from weightguard.statistics.grams import Grams

GRAM_BYTES = 4 << 30  # Gram matrices kept at one time, 8·in² bytes an input site, for both roles together
ENERGY = 1e-12  # of the largest eigenvalue: below it a direction is rounding of the forward pass
RESOLUTION = 1e-6  # of ‖W‖: below it a part is rounding, which no float32 weight would show


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
        asked = {name: self._asked(material.shape(name)) for name in material.linears}
        if not any(each["safety"] for each in asked.values()):
            raise UsageError(f"--top-safety {self.top_safety} is not one rank of any tensor; give a larger share")
        parts: dict[str, Part] = {}
        used: dict[str, dict[str, int]] = {}
        for some in _chunks(material):
            grams = {role: _grams(material, role, some) for role in self.needs}
            for name in some:
                part, used[name] = _part(material, name, grams, asked[name])
                parts |= {} if part is None else {name: part}
        if not parts:
            raise DataError("the safety directions lie within the utility directions; give a smaller --top-utility")
        return Found(parts, {"ranks": used}, tuple(_notes(asked, used)))

    def _asked(self, shape: tuple[int, int]) -> dict[str, int]:
        """Ranks of a tensor by role."""
        from weightguard.statistics.selection import count

        shares = {"safety": self.top_safety, "utility": self.top_utility}
        return {role: count(as_share(shares[role], f"top-{role}"), min(shape), "exact") for role in self.needs}


def _notes(asked: Mapping[str, Mapping[str, int]], used: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    for role in next(iter(asked.values())):
        fewer = [name for name in asked if used[name][role] < asked[name][role]]
        if fewer:
            yield (
                f"in {len(fewer)} tensors (first: {fewer[0]}) the {role} data span only {used[fewer[0]][role]} directions of "
                f"{asked[fewer[0]][role]} asked for; those are taken, more data would tell the others"
            )


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


def _part(
    material: Material, name: str, grams: Mapping[str, Grams], asked: Mapping[str, int]
) -> tuple[Part | None, dict[str, int]]:
    """The part, None where nothing but rounding is left of the safety directions, and the ranks that were taken."""
    weight = material.weights(name).logical
    taken = {role: directions(weight, grams[role].gram(name), asked[role]) for role in grams}
    left, right = removed(weight, taken["safety"], taken.get("utility"))
    squares = ((left.T @ left) * (right @ right.T)).sum()  # ‖left·right‖²
    ranks = {role: vectors.shape[1] for role, vectors in taken.items()}
    if squares <= (RESOLUTION * weight.double().norm()) ** 2:
        return None, ranks
    return Part("rank", material.shape(name), left=left.float().numpy(), right=right.float().numpy()), ranks


def directions(weight: torch.Tensor, gram: torch.Tensor, k: int) -> torch.Tensor:
    """The top k output directions on the data behind the Gram, or fewer where the outputs span fewer; float64 (out, <= k).

    Beyond what the data span the eigenvectors are arbitrary: few answer tokens know few directions.
    """
    from weightguard.statistics.grams import spectrum

    values, vectors = spectrum(weight, gram)
    return vectors[:, : min(k, int((values > ENERGY * values[0]).sum()))]


def removed(
    weight: torch.Tensor, safety: torch.Tensor, utility: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(I − Π_u) Π_s W as left (out, k) · right (k, in), float64, k the smaller of r_s and out − r_u.

    weight (out, in); orthonormal directions (out, r_s) and (out, r_u), float64; no utility: Π_u = 0.
    """
    import torch

    right = safety.T @ weight.double()
    if utility is None:
        return safety, right
    if len(weight) - utility.shape[1] < safety.shape[1]:
        rest = torch.linalg.qr(utility, mode="complete").Q[:, utility.shape[1] :]
        return rest, (rest.T @ safety) @ right
    return safety - utility @ (utility.T @ safety), right
