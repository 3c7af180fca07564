"""A decoder run one layer at a time: weights of one layer, hidden states of all rows, new weights on the way.

The stock model itself makes embeddings, masks, positions and rotary tables, once per chunk of rows, with layers that
pass their input on. The stock layer modules then take those, one by one, with weights read from the shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from weightguard.checkpoint import Checkpoint, Linear, decoder_linears, family_of, sees
from weightguard.data import Encoded
from weightguard.errors import UnsupportedError
from weightguard.statistics.experts import Routed, expert_modules
from weightguard.statistics.forward import BATCH_TOKENS, batches, check_lengths, padded
from weightguard.statistics.loading import device_of, dtype_of
from weightguard.statistics.spill import Held, Spill, Spilled, back, waiting
from weightguard.statistics.streamed import Read, StreamedModel

Values = dict[str, torch.Tensor]


NOT_WALKED = "{}: cannot be run layer by layer, as this method needs: {}; another method repairs it"


# Experts whose tokens the router has scaled, or whose layers run in another way than here: refused, not guessed.
_NOT_ROUTED = ("gpt_oss", "llama4_text", "qwen3_next")


class _Reached(Exception):
    """All that was asked of a forward pass has been seen; the rest of it is not run."""


@dataclass
class Chunk:
    """Rows that run together. hidden: (rows, longest, width), the input of the layer at which the walk stands.

    calls: what the model passes each layer besides (masks, rotary tables). counted, real: bool (rows, longest).
    outputs: of linears of this layer that have run already; they do not run again. routed: what stands before its experts.
    """

    role: str
    hidden: Held | Spilled
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    counted: torch.Tensor
    real: torch.Tensor
    outputs: Values = field(default_factory=dict)
    routed: Routed | None = None

    def forget(self) -> None:
        """What was computed in this layer no longer holds."""
        self.outputs.clear()
        self.routed = None


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

    def sizes(self, index: int) -> tuple[int, int]:
        """(bytes in the files, parameters) of a layer."""
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
                raise _Reached
            return hidden_states

        for layer in self._streamed.stack:
            layer.forward = passing
        try:
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            inner = self._streamed.inner.base_model
            inner(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False)
        except _Reached:
            pass
        finally:
            for layer in self._streamed.stack:
                del layer.forward
        return Chunk(role, self._keep(first[0]), waiting(calls, self._keep), counted, attention.bool())


class LayerWalk(Walk):
    """A walk that shows what each linear is given and gives back, and takes new weights for it.

    For each layer: enter, then inputs and put as often as needed, then leave. A linear multiplies a chunk once, however
    often the layer is run: what lies between linears is all that runs again.
    """

    def __init__(
        self, checkpoint: Checkpoint, read: Read, rows: Mapping[str, Sequence[Encoded]], **options: Any
    ) -> None:
        self._family = family_of(checkpoint.config)
        self._linears = decoder_linears(checkpoint.config, checkpoint.tensors)
        _check_walkable(checkpoint)
        super().__init__(checkpoint, read, rows, **options)
        if not hasattr(self.model.base_model, self._family.block):
            raise UnsupportedError(NOT_WALKED.format(checkpoint.label, "its layers lie deeper than one step"))
        assert self.chunks  # hidden states are there before other models are loaded

    def enter(self, index: int) -> None:
        """Take the weights of a layer in."""
        super().enter(index)
        for name in self._here():
            self._module(name).forward = self._once(name)

    @torch.inference_mode()
    def leave(self, names: Sequence[str] = ()) -> list[tuple[str, Values]]:
        """Run the layer on every chunk and drop its weights; (role, outputs) of the named linears, chunk by chunk.

        Outputs are those of the counted positions, (n, out), with their bias.
        """
        found = []
        for chunk in self.chunks:
            seen: Values = {}
            with self._hooks(names, lambda name, _, output, s=seen, c=chunk: s.update({name: _at(output, c.counted)})):
                self.advance(chunk)
            chunk.forget()
            found.append((chunk.role, seen))
        for name in self._here():
            del self._module(name).forward
        self.drop()
        return found

    @torch.inference_mode()
    def inputs(self, name: str) -> Iterator[tuple[str, torch.Tensor]]:
        """(role, input (n, in) of the named linear at the counted positions), chunk by chunk, under the weights so far."""
        for chunk in self.chunks:
            seen: list[torch.Tensor] = []

            def stop(_: Any, args: tuple[torch.Tensor, ...], seen: list = seen, chunk: Chunk = chunk) -> None:
                seen.append(_at(args[0], chunk.counted))
                raise _Reached

            self._run_to(self._module(name), stop, chunk)
            yield chunk.role, seen[0]

    def put(self, name: str, values: torch.Tensor) -> None:
        """New weights (out, in) for a linear of this layer, in force from the next run on."""
        linear = self._linears[name]
        stored = values.T if linear.transposed else values
        if linear.expert is not None:
            self._routed(self.chunks[0]).put(linear, stored)  # chunks share the weights; the router saw none of them
            return
        self._module(name).weight = _parameter(stored.contiguous().to(self._device, self.dtype))
        for chunk in self.chunks:
            if name in chunk.outputs:  # and with it whatever comes after it in a forward
                chunk.forget()

    @torch.inference_mode()
    def routed(self) -> list[tuple[str, Routed]]:
        """(role, what stands before the routed experts of this layer), chunk by chunk; it keeps the weights it saw."""
        return [(chunk.role, self._routed(chunk)) for chunk in self.chunks]

    def _routed(self, chunk: Chunk) -> Routed:
        def stop(experts: Any, args: tuple[torch.Tensor, ...]) -> None:
            chunk.routed = Routed.of(experts, args, chunk.counted)
            raise _Reached

        if chunk.routed is None:
            self._run_to(self._experts(), stop, chunk)
        assert chunk.routed is not None
        return chunk.routed

    def _run_to(self, module: torch.nn.Module, stop: Callable[..., None], chunk: Chunk) -> None:
        handle = module.register_forward_pre_hook(stop)
        try:
            self._run(chunk)
        except _Reached:
            pass
        finally:
            handle.remove()

    def bias(self, name: str) -> torch.Tensor | None:
        """The bias (out,) of a linear of this layer, where it has one."""
        found = getattr(self._module(name), "bias", None)
        return None if found is None else found.detach()

    def _module(self, name: str) -> Any:
        linear: Linear = self._linears[name]
        assert linear.layer == self._index, f"the walk stands at layer {self._index}, {name} is elsewhere"
        return self._layer.get_submodule(self._family.linears[linear.role])

    def _here(self) -> list[str]:
        linears = self._linears.items()
        return [name for name, linear in linears if linear.layer == self._index and linear.expert is None]

    def _experts(self) -> torch.nn.Module:
        return expert_modules(self._family, dict(self.model.named_modules()))[self._index]

    def _once(self, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """The forward of a linear that has been run on a chunk of this layer at most once since it was given weights."""
        module = self._module(name)

        def forward(x: torch.Tensor) -> torch.Tensor:
            if name not in self._running.outputs:
                self._running.outputs[name] = type(module).forward(module, x)
            return self._running.outputs[name]

        return forward

    def _run(self, chunk: Chunk) -> torch.Tensor:
        self._running = chunk
        return super()._run(chunk)

    def _hooks(self, names: Sequence[str], see: Callable[..., None]) -> _Hooks:
        return _Hooks([self._module(n).register_forward_hook(lambda _, a, o, n=n: see(n, a, o)) for n in names])


def _check_walkable(checkpoint: Checkpoint) -> None:
    """Error: UnsupportedError where files and memory name the parts of a layer differently."""
    if sees(checkpoint.config):
        raise UnsupportedError(NOT_WALKED.format(checkpoint.label, "a vision tower stands beside the language model"))
    if checkpoint.config["model_type"] in _NOT_ROUTED:
        raise UnsupportedError(NOT_WALKED.format(checkpoint.label, "its experts are not walked"))


class _Hooks:
    """Handles of hooks that are taken off again at the end of a with block."""

    def __init__(self, handles: list[Any]) -> None:
        self._handles = handles

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def _at(values: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Values (n, width) at the counted positions; some modules are given tokens in one row, or with an axis for heads."""
    return values.reshape(*counted.shape, -1)[counted]


def _parameter(tensor: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(tensor, requires_grad=False)
