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
from weightguard.errors import CheckpointError, UnsupportedError
from weightguard.statistics.experts import Routed, expert_modules, expert_weight
from weightguard.statistics.forward import BATCH_TOKENS, batches, check_lengths, padded
from weightguard.statistics.loading import DTYPES, bare_decoder, device_of

Read = Callable[[str], torch.Tensor]
Values = dict[str, torch.Tensor]


NOT_WALKED = "{}: cannot be run layer by layer, as this method needs: {}; another method repairs it"


_PACKED = ("experts.gate_up_proj", "experts.down_proj")
# What files call a module where transformers names it in another way: in memory -> on disk.
_RENAMED = {"mixtral": {"mlp.": "block_sparse_moe."}, "granitemoe": {"router.": "router.layer."}}
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
    hidden: torch.Tensor
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    counted: torch.Tensor
    real: torch.Tensor
    outputs: Values = field(default_factory=dict)
    routed: Routed | None = None

    def forget(self) -> None:
        """What was computed in this layer no longer holds."""
        self.outputs.clear()
        self.routed = None


class LayerWalk:
    """One model over rows of several roles. For each layer: enter, then inputs and put as often as needed, then leave.

    A linear multiplies a chunk once, however often the layer is run: what lies between linears is all that runs again.
    read: on-disk tensor name -> tensor in storage order. Tensors are run in `dtype` on `device`, whatever they are
    stored in. Errors: CheckpointError for a missing or misshapen tensor, DataError for a row that is too long.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        read: Read,
        rows: Mapping[str, Sequence[Encoded]],
        *,
        dtype: str = "float32",
        device: str = "cpu",
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        self._label, self._read, self._stored = checkpoint.label, read, checkpoint.tensors
        self._dtype, self._device = DTYPES[dtype], device_of(device)
        self._family, self._kind = family_of(checkpoint.config), checkpoint.config["model_type"]
        self._linears = decoder_linears(checkpoint.config, checkpoint.tensors)
        _check_walkable(checkpoint)
        self._prefix = next(iter(self._linears)).partition(f"{self._family.block}.0.")[0]
        self._model = bare_decoder(checkpoint, self._device)
        if not hasattr(self._model, self._family.block):
            raise UnsupportedError(NOT_WALKED.format(checkpoint.label, "its layers lie deeper than one step"))
        for each in rows.values():
            check_lengths(each, checkpoint.config, self._model)
        self._chunks = self._started(rows, batch_tokens)
        self._index = -1

    @property
    def layers(self) -> int:
        return len(self._stack)

    def enter(self, index: int) -> None:
        """Take the weights of a layer in."""
        self._index = index
        self._fill(self._layer, f"{self._family.block}.{index}.")
        for name in self._here():
            self._module(name).forward = self._once(name)

    @torch.inference_mode()
    def leave(self, names: Sequence[str] = ()) -> list[tuple[str, Values]]:
        """Run the layer on every chunk and drop its weights; (role, outputs) of the named linears, chunk by chunk.

        Outputs are those of the counted positions, (n, out), with their bias.
        """
        found = []
        for chunk in self._chunks:
            seen: Values = {}
            with self._hooks(names, lambda name, _, output, s=seen, c=chunk: s.update({name: _at(output, c.counted)})):
                # Padding behind a sliding window sees no key at all, and some kernels then answer NaN, which would spread.
                chunk.hidden = self._run(chunk).masked_fill(~chunk.real[..., None], 0)
            chunk.forget()
            found.append((chunk.role, seen))
        for name in self._here():
            del self._module(name).forward
        self._layer.to("meta")
        self._index = -1
        return found

    @torch.inference_mode()
    def inputs(self, name: str) -> Iterator[tuple[str, torch.Tensor]]:
        """(role, input (n, in) of the named linear at the counted positions), chunk by chunk, under the weights so far."""
        for chunk in self._chunks:
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
            self._routed(self._chunks[0]).put(linear, stored)  # chunks share the weights; the router saw none of them
            return
        self._module(name).weight = _parameter(stored.contiguous().to(self._device, self._dtype))
        for chunk in self._chunks:
            if name in chunk.outputs:  # and with it whatever comes after it in a forward
                chunk.forget()

    @torch.inference_mode()
    def routed(self) -> list[tuple[str, Routed]]:
        """(role, what stands before the routed experts of this layer), chunk by chunk; it keeps the weights it saw."""
        return [(chunk.role, self._routed(chunk)) for chunk in self._chunks]

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

    @property
    def _stack(self) -> torch.nn.ModuleList:
        return getattr(self._model, self._family.block)

    @property
    def _layer(self) -> torch.nn.Module:
        return self._stack[self._index]

    def _module(self, name: str) -> Any:
        linear: Linear = self._linears[name]
        assert linear.layer == self._index, f"the walk stands at layer {self._index}, {name} is elsewhere"
        return self._layer.get_submodule(self._family.linears[linear.role])

    def _here(self) -> list[str]:
        linears = self._linears.items()
        return [name for name, linear in linears if linear.layer == self._index and linear.expert is None]

    def _experts(self) -> torch.nn.Module:
        return expert_modules(self._family, dict(self._model.named_modules()))[self._index]

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
        args, kwargs = chunk.calls[self._index]
        out = self._layer(chunk.hidden, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    def _hooks(self, names: Sequence[str], see: Callable[..., None]) -> _Hooks:
        return _Hooks([self._module(n).register_forward_hook(lambda _, a, o, n=n: see(n, a, o)) for n in names])

    def _fill(self, module: torch.nn.Module, path: str, leave_out: str | None = None) -> None:
        tables = {k: b for k, b in module.named_buffers() if f"{self._prefix}{path}{k}" in self._stored}
        every = {**dict(module.named_parameters()), **tables}
        wanted = {key: held for key, held in every.items() if leave_out is None or not key.startswith(leave_out)}
        tensors = {
            key: self._packed(held.shape, key.rpartition(".")[2])
            if key.endswith(_PACKED)
            else self._taken(f"{self._prefix}{path}{self._on_disk(key)}", held.shape)
            for key, held in wanted.items()
        }
        module.load_state_dict(tensors, strict=False, assign=True)

    def _on_disk(self, key: str) -> str:
        """The name that files give a parameter of a layer."""
        for inside, stored in _RENAMED.get(self._kind, {}).items():
            key = key.replace(inside, stored)
        return key

    def _packed(self, shape: torch.Size, parameter: str) -> torch.Tensor:
        """The experts of this layer in one, as the stock model keeps them."""
        held = torch.nn.Module()
        whole = torch.nn.Parameter(torch.empty(shape, dtype=self._dtype, device=self._device), requires_grad=False)
        held.gate_up_proj = held.down_proj = whole
        for name, linear in self._linears.items():
            down = linear.role == "expert_down"
            if linear.layer == self._index and linear.expert is not None and down == (parameter == "down_proj"):
                part = expert_weight(held, linear.role, linear.expert)[1](whole.data)
                part.copy_(self._taken(name, part.shape))
        return whole

    def _taken(self, name: str, shape: torch.Size) -> torch.Tensor:
        tensor = self._read(name)
        if tensor.shape != shape:
            raise CheckpointError(
                f"{self._label}: tensor {name!r} is {list(tensor.shape)}, config.json makes it {list(shape)}"
            )
        return tensor.to(self._device, self._dtype)

    @torch.inference_mode()
    def _started(self, rows: Mapping[str, Sequence[Encoded]], batch_tokens: int) -> list[Chunk]:
        """Every row in front of the first layer."""
        self._fill(self._model, "", leave_out=f"{self._family.block}.")
        made = [
            self._chunk(role, *padded(batch, self._device))
            for role, each in rows.items()
            for batch in batches(each, batch_tokens)
        ]
        self._model.to("meta")
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

        for layer in self._stack:
            layer.forward = passing
        try:
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            self._model(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False)
        except _Reached:
            pass
        finally:
            for layer in self._stack:
                del layer.forward
        return Chunk(role, first[0], calls, counted, attention.bool())


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
