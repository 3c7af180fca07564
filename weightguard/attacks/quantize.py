"""A quantisation round trip: what a release in 8 or 4 bits does to refusals, without any ill will."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from weightguard.errors import UsageError
from weightguard.options import option

if TYPE_CHECKING:
    import torch

    from weightguard.attacks.bench import Bench


@dataclass(frozen=True, kw_only=True)
class QuantizeRoundTrip:
    """Every decoder linear to whole numbers and back: symmetric, absmax scale of each group of inputs of each output."""

    NAME: ClassVar[str] = "quantize-round-trip"
    PAPER: ClassVar[str] = "none"

    bits: int = option(4, "Bits of a weight, 2 to 8 [default: 4].")
    group_size: int = option(64, "Weights of one row that share a scale; 0: the whole row [default: 64].")

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    def check(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UsageError(f"--bits {self.bits}: must be 2 to 8")
        if self.group_size < 0:
            raise UsageError(f"--group-size {self.group_size}: must be 0 or more")

    def run(self, bench: Bench) -> None:
        for done, name in enumerate(bench.linears, 1):
            bench.put(name, rounded(bench.weight(name), self.bits, self.group_size))
            bench.progress("quantise", done, len(bench.linears))


def rounded(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """The weight (out, in) on the grid of its groups: round(w/s)·s with s = max|w|/(2^(bits−1) − 1); float64."""
    import torch

    width = group or weight.shape[1]
    pieces = []
    for start in range(0, weight.shape[1], width):
        block = weight[:, start : start + width].double()
        scale = block.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        pieces.append(torch.where(scale > 0, (block / scale).round() * scale, block))
    return torch.cat(pieces, 1)
