"""A decoder run one layer at a time: weights of one layer, hidden states of all rows, new weights on the way.

The stock model itself makes embeddings, masks, positions and rotary tables, once per chunk of rows, with layers that
pass their input on. The stock layer modules then take those, one by one, with weights read from the shards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from weightguard.checkpoint import Checkpoint
from weightguard.data import Encoded
from weightguard.statistics.forward import BATCH_TOKENS, batches, check_lengths, padded
from weightguard.statistics.loading import device_of, dtype_of
from weightguard.statistics.spill import Held, Spill, Spilled, back, waiting
from weightguard.statistics.streamed import Read, StreamedModel


class Reached(Exception):
    """All that was asked of a forward pass has been seen; the rest of it is not run."""


@dataclass
class Chunk:
    """Rows that run together. hidden: (rows, longest, width), the input of the layer at which the walk stands.

    calls: what the model passes each layer besides (masks, rotary tables). counted, real: bool (rows, longest).
    """

    role: str
    hidden: Held | Spilled
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    counted: torch.Tensor
    real: torch.Tensor


class Walk:
    """One model over rows of several roles. For each layer: enter, advance every chunk, drop.

    read: on-disk tensor name -> tensor in storage order; None: as the files hold it. Tensors are run in `dtype` on
    `device`. adapter: over the checkpoint, with modules of peft. Errors: CheckpointError for a missing or misshapen
    tensor, DataError for a row that is too long.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        read: Read | None,
        rows: Mapping[str, Sequence[Encoded]],
        *,
        dtype: str = "float32",
        device: str = "cpu",
        batch_tokens: int = BATCH_TOKENS,
        adapter: Checkpoint | None = None,
    ) -> None:
        self.checkpoint, self.dtype, self._device = checkpoint, dtype_of(dtype), device_of(device)
        self._streamed = StreamedModel(checkpoint, read, dtype, self._device, adapter)
        for each in rows.values():
            check_lengths(each, checkpoint.config, self._streamed.inner)
        self._keep: Callable[[torch.Tensor], Held | Spilled] = Held
        self._rows, self._batch_tokens = rows, batch_tokens
        self._chunks: list[Chunk] | None = None
        self._index = -1

    @property
    def model(self) -> Any:
        """The model that runs; only the layer at which the walk stands has weights."""
        return self._streamed.model

    @property
    def vocabulary(self) -> int:
        """Rows of the input embedding: the ids a forward pass accepts."""
        return self._streamed.vocabulary

    @property
    def layers(self) -> int:
        return len(self._streamed.stack)

    @property
    def chunks(self) -> list[Chunk]:
        """All rows, first asked for in front of the first layer."""
        if self._chunks is None:
            self._chunks = self._started()
        return self._chunks

    @property
    def batches(self) -> list[list[Encoded]]:
        """The rows that will run together, chunk by chunk."""
        return [batch for each in self._rows.values() for batch in batches(each, self._batch_tokens)]

    def sizes(self, index: int | None) -> tuple[int, int]:
        """(bytes in the files, parameters) of a layer, or of what stands before the first."""
        return self._streamed.sizes(index)

    def spill(self) -> None:
        """Let hidden states wait in a temporary file; to be said before the walk begins. Error then: OSError for a full disk."""
        assert self._chunks is None
        self._keep = Spill()

    def enter(self, index: int) -> None:
        """Take the weights of a layer in."""
        assert self.chunks, "a walk needs rows"
        self._index = index
        self._streamed.enter(index)

    @torch.inference_mode()
    def advance(self, chunk: Chunk) -> None:
        """Run the layer on a chunk, which then stands in front of the next one."""
        # Padding behind a sliding window sees no key at all, and some kernels then answer NaN, which would spread. Other
        # padding stays: it takes a place among the tokens that are sent to an expert.
        found = self._run(chunk)
        lost = ~chunk.real & found.isnan().any(-1)
        chunk.hidden.put(found.masked_fill(lost[..., None], 0))

    def drop(self) -> None:
        """Let go of the weights of the layer."""
        self._streamed.leave(self._index)
        self._index = -1

    @property
    def _layer(self) -> torch.nn.Module:
        return self._streamed.stack[self._index]

    def _run(self, chunk: Chunk) -> torch.Tensor:
        args, kwargs = back(chunk.calls[self._index])
        out = self._layer(chunk.hidden.get(), *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    @torch.inference_mode()
    def _started(self) -> list[Chunk]:
        """Every row in front of the first layer."""
        self._streamed.enter(None)
        made = [
            self._chunk(role, *padded(batch, self._device))
            for role, each in self._rows.items()
            for batch in batches(each, self._batch_tokens)
        ]
        self._streamed.leave(None)
        return made

    def _chunk(self, role: str, ids: torch.Tensor, attention: torch.Tensor, counted: torch.Tensor) -> Chunk:
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        first: list[torch.Tensor] = []

        def passing(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            first.append(hidden_states)
            calls.append((args, kwargs))
            if len(calls) == self.layers:
                raise Reached
            return hidden_states

        for layer in self._streamed.stack:
            layer.forward = passing
        try:
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            inner = self._streamed.inner.base_model
            inner(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False)
        except Reached:
            pass
        finally:
            for layer in self._streamed.stack:
                del layer.forward
        return Chunk(role, self._keep(first[0]), waiting(calls, self._keep), counted, attention.bool())
