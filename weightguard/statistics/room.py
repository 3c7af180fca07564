"""How much memory a walk takes, told before it begins from shapes alone. Counted too high rather than too low."""

from __future__ import annotations

from collections.abc import Sequence

from weightguard.checkpoint import decoder_linears
from weightguard.data import Encoded
from weightguard.statistics.walk import Walk


def bytes_at_work(walk: Walk) -> int:
    """What is held at once: the weights of the largest layer, and what the largest chunk of rows becomes in it."""
    return max(_weights(walk, index) for index in range(walk.layers)) + max(_chunk(walk, each) for each in walk.batches)


def bytes_waiting(walk: Walk) -> int:
    """What waits from one layer to the next: hidden states, masks and rotary tables of all rows."""
    width = walk.model.config.get_text_config().hidden_size
    entries = sum(_padded(batch) * (2 * width + 2 * _longest(batch)) for batch in walk.batches)
    return entries * walk.dtype.itemsize


def _weights(walk: Walk, index: int) -> int:
    linears = decoder_linears(walk.checkpoint.config, walk.checkpoint.tensors).values()
    here = [linear for linear in linears if linear.layer == index]
    # Experts that lie apart in the files are stacked, and gate and up joined, while they themselves are still there.
    copies = 2 if any(linear.expert is not None for linear in here) else 1
    read = max((walk.checkpoint.info(linear.tensor).nbytes for linear in here), default=0)
    return walk.sizes(index)[1] * walk.dtype.itemsize * copies + read


def _chunk(walk: Walk, batch: Sequence[Encoded]) -> int:
    """Hidden states, the queries, keys and values, what lies between the linears of an MLP, and attention's scores."""
    config = walk.model.config.get_text_config()
    linears = decoder_linears(walk.checkpoint.config, walk.checkpoint.tensors)
    widest = max(max(walk.checkpoint.info(name).shape) for name in linears)
    whole = getattr(config, "_attn_implementation", None) == "eager"
    scores = _longest(batch) * (3 * config.num_attention_heads if whole else 2)
    return _padded(batch) * (8 * config.hidden_size + 4 * widest + scores) * walk.dtype.itemsize


def _padded(batch: Sequence[Encoded]) -> int:
    return len(batch) * _longest(batch)


def _longest(batch: Sequence[Encoded]) -> int:
    return max(len(row.ids) for row in batch)
