"""Three models side by side, layer by layer: the aligned one on safety data, the tuned one on benign data, and the
repaired one on both. At each input site: what comes in now, and what should come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import torch

from weightguard.checkpoint import Linear
from weightguard.statistics.experts import Routed
from weightguard.statistics.layer_walk import LayerWalk

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
    """Linears that share one input. `put` gives one of them new weights (out, in), from which the walk goes on.

    positions: counted positions by role; of an expert, those that the repaired model's router sends it. samples: chunk by
    chunk, to be gone through once.
    """

    names: tuple[str, ...]
    positions: Mapping[str, int]
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
            self.repaired.enter(layer)
            for teacher in self._teachers:
                teacher.enter(layer, [linear.tensor for linear in here if linear.expert is None])
            routed: list[Routed] = []
            for group in _by_site(here):
                if group[0].expert is None:
                    yield self._site(tuple(linear.tensor for linear in group))
                else:
                    routed = routed or [found for teacher in self._teachers for _, found in teacher.routed()]
                    yield self._expert(group, routed)
            for walk in (*self._teachers, self.repaired):
                walk.leave()
            self.progress("layers", layer + 1, self.repaired.layers)

    @property
    def _teachers(self) -> tuple[LayerWalk, LayerWalk]:
        """In the order of roles in the repaired model's rows."""
        return self.aligned, self.tuned

    def _site(self, names: tuple[str, ...]) -> Site:
        def samples() -> Iterator[Samples]:
            taught = chain.from_iterable(teacher.outputs(names) for teacher in self._teachers)
            for (role, x), (_, outputs) in zip(self.repaired.inputs(names[0]), taught, strict=True):
                yield Samples(role, x, {name: self._without_bias(name, outputs[name]) for name in names})

        return Site(names, self.positions, samples, self.repaired.put)

    def _expert(self, group: list[Linear], teachers: list[Routed]) -> Site:
        """Linears of one expert: its tokens in the repaired model, and what the teacher's expert makes of the same tokens."""
        now = [(role, found, found.tokens(group[0].expert or 0)) for role, found in self.repaired.routed()]

        def samples() -> Iterator[Samples]:
            for (role, found, tokens), teacher in zip(now, teachers, strict=True):
                wanted = {each.tensor: teacher.outputs(each, tokens) - _bias(found, each) for each in group}
                yield Samples(role, found.inputs(group[0], tokens), wanted)

        reached = {each: sum(len(tokens) for role, _, tokens in now if role == each) for each in self.positions}
        return Site(tuple(each.tensor for each in group), reached, samples, self.repaired.put)

    def _without_bias(self, name: str, outputs: torch.Tensor) -> torch.Tensor:
        bias = self.repaired.bias(name)
        return outputs if bias is None else outputs - bias


def _by_site(linears: list[Linear]) -> list[list[Linear]]:
    found: dict[tuple, list[Linear]] = {}
    for linear in linears:
        found.setdefault(linear.site, []).append(linear)
    return list(found.values())


def _bias(found: Routed, linear: Linear) -> torch.Tensor | float:
    bias = found.bias(linear)
    return 0.0 if bias is None else bias
