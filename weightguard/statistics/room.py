"""How much memory a walk takes, told before it begins from shapes alone. Counted too high rather than too low."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from weightguard.checkpoint import Checkpoint, Linear, decoder_linears
from weightguard.data import Encoded
from weightguard.statistics.walk import Walk


def bytes_at_work(walk: Walk, models: int = 1) -> int:
    """What is held at once: the weights of the largest layer of so many models that are walked side by side, and what the
    largest chunk of rows becomes in it, while it is made in one model and looked at in another."""
    layer = max(_weights(walk, index) for index in range(walk.layers))
    return models * layer + min(models, 2) * max(_chunk(walk, each) for each in walk.batches)


def bytes_waiting(walk: Walk) -> int:
    """What waits from one layer to the next: hidden states, masks and rotary tables of all rows."""
    width = walk.model.config.get_text_config().hidden_size
    entries = sum(_padded(batch) * (2 * width + 2 * _longest(batch)) for batch in walk.batches)
    return entries * walk.dtype.itemsize


def bytes_before(walk: Walk) -> int:
    """The embedding, and as it is read, before the first layer runs."""
    stored, count = walk.sizes(None)
    return stored + count * walk.dtype.itemsize


def bytes_solving(checkpoint: Checkpoint, linears: Mapping[str, Linear]) -> int:
    """What a ridge holds of the largest group of linears with one input: sums and factors (in, in), and of (out, in) the
    weights of both models, the right sides, the solution, what is stored of it and how far that lies away; in float64."""
    sides: dict[tuple, list[tuple[int, int]]] = {}
    for name, linear in linears.items():
        out, width = checkpoint.info(name).shape[:: -1 if linear.transposed else 1]
        sides.setdefault(linear.site, []).append((out, width))
    return max(8 * (3 * each[0][1] ** 2 + 8 * each[0][1] * sum(out for out, _ in each)) for each in sides.values())


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
