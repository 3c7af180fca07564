"""Three models side by side, layer by layer: the aligned one on safety data, the tuned one on benign data, and the
repaired one on both. At each input site: what comes in now, and what should come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, product

import torch

from weightguard.checkpoint import Linear
from weightguard.statistics.walk import LayerWalk

SAFETY, BENIGN = "safety", "benign"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Samples:
    """x (n, in): inputs of a site in the model repaired so far. wanted: linear -> (n, out), less the repaired model's bias."""

    role: str
    x: torch.Tensor
    wanted: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Site:
    """Linears that share one input. `put` gives one of them new weights (out, in), from which the walk goes on."""

    names: tuple[str, ...]
    samples: Callable[[], Iterator[Samples]]
    put: Callable[[str, torch.Tensor], None]


@dataclass(frozen=True)
class SideBySide:
    """`aligned` walks safety rows, `tuned` benign rows, `repaired` both, under the roles of these names.

    positions: counted positions by role. linears: those that are repaired, in the order in which a forward meets them.
    """

    aligned: LayerWalk
    tuned: LayerWalk
    repaired: LayerWalk
    linears: Mapping[str, Linear]
    positions: Mapping[str, int]
    progress: Progress

    def sites(self) -> Iterator[Site]:
        """Every site in forward order; a site is to be used before the next is asked for."""
        for layer in range(self.repaired.layers):
            here = [linear for linear in self.linears.values() if linear.layer == layer]
            names = [linear.tensor for linear in here]
            wanted = [outputs for walk in (self.aligned, self.tuned) for outputs in _through(walk, layer, names)]
            self.repaired.enter(layer)
            for _, group in groupby(here, key=lambda linear: linear.site):
                site = tuple(linear.tensor for linear in group)
                yield self._site(site, wanted)
                for outputs, name in product(wanted, site):
                    del outputs[name]  # a layer's outputs are many times its hidden states
            self.repaired.leave()
            self.progress("layers", layer + 1, self.repaired.layers)

    def _site(self, names: tuple[str, ...], wanted: list[dict[str, torch.Tensor]]) -> Site:
        def samples() -> Iterator[Samples]:
            for (role, x), outputs in zip(self.repaired.inputs(names[0]), wanted, strict=True):
                yield Samples(role, x, {name: self._without_bias(name, outputs[name]) for name in names})

        return Site(names, samples, self.repaired.put)

    def _without_bias(self, name: str, outputs: torch.Tensor) -> torch.Tensor:
        bias = self.repaired.bias(name)
        return outputs if bias is None else outputs - bias


def _through(walk: LayerWalk, layer: int, names: list[str]) -> list[dict[str, torch.Tensor]]:
    walk.enter(layer)
    return [outputs for _, outputs in walk.leave(names)]
