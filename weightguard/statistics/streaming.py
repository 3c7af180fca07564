"""Input norms of a model of any size: a layer's weights at a time, all rows through it, then the next layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy

from weightguard.checkpoint import Linear, LoraPair
from weightguard.statistics.forward import SquareSums, watched
from weightguard.statistics.walk import Walk

# (layer at work from 1, layers, bytes of weights that are done, all bytes)
LayerProgress = Callable[[int, int, int, int], None]


def streamed_square_sums(
    walk: Walk,
    config: dict[str, Any],
    linears: Mapping[str, Linear],
    progress: LayerProgress,
    pairs: Mapping[str, LoraPair] | None = None,
) -> dict[str, numpy.ndarray]:
    """What `input_square_sums` gives for the whole model, to the bit: the same modules see the same batches in order.

    A chunk counts as its share of the bytes of its layer. Error: OSError for a full disk where hidden states are spilled.
    """
    sums = SquareSums(walk.model, config, linears, pairs)
    sizes = [walk.sizes(index)[0] for index in range(walk.layers)]
    with watched(sums.hooked, sums.take) as count:
        for index in range(walk.layers):
            walk.enter(index)
            for number, chunk in enumerate(walk.chunks, 1):
                count(chunk.counted)
                walk.advance(chunk)
                done = sum(sizes[:index]) + sizes[index] * number // len(walk.chunks)
                progress(index + 1, walk.layers, done, sum(sizes))
            walk.drop()
    return sums.by_name()
