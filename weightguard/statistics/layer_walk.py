"""A walk that shows what each linear of a layer is given and gives back, and takes new weights for it on the way.

Of every row a linear multiplies once, and an attention or MLP runs once, or once more on zeros where the walk stands in
front of its last linear. What must wait for that is small: outputs that only lead to an input that waits itself are
dropped for their shape.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from weightguard.checkpoint import Checkpoint, Linear, decoder_linears, family_of, sees
from weightguard.data import Encoded
from weightguard.errors import UnsupportedError
from weightguard.statistics.experts import Routed, expert_modules
from weightguard.statistics.spill import Held, Spill, Spilled, back, waiting
from weightguard.statistics.streamed import Read
from weightguard.statistics.walk import Chunk, Reached, Walk

Values = dict[str, torch.Tensor]

NOT_WALKED = "{}: cannot be run layer by layer, as this method needs: {}; another method repairs it"


@dataclass
class _SoFar:
    """How far the layer has been run on a chunk.

    outputs: of linears, a shape on the meta device where the values are needed no more. given: the input of a linear that
    writes to the residual stream and has not run. blocks: what an attention or an MLP returned. routed: what stands before
    the experts. All but the last two wait where hidden states do.
    """

    outputs: dict[str, Held | Spilled] = field(default_factory=dict)
    given: dict[str, Held | Spilled] = field(default_factory=dict)
    blocks: dict[str, Any] = field(default_factory=dict)
    routed: Routed | None = None


class LayerWalk(Walk):
    """For each layer: enter, then ask for outputs, or for inputs and put, in the order of a forward, then leave.

    fit: is shown the walk before it begins; whatever waits then does so in temporary files. Error: OSError for a full disk.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        read: Read,
        rows: Mapping[str, Sequence[Encoded]],
        *,
        fit: Callable[[Walk], None] | None = None,
        **options: Any,
    ) -> None:
        self._family = family_of(checkpoint.config)
        self._linears = decoder_linears(checkpoint.config, checkpoint.tensors)
        _check_walkable(checkpoint)
        super().__init__(checkpoint, read, rows, **options)
        if not hasattr(self.model.base_model, self._family.block):
            raise UnsupportedError(NOT_WALKED.format(checkpoint.label, "its layers lie deeper than one step"))
        self._beside: Callable[[torch.Tensor], Held | Spilled] = Held
        self._spilled = fit is not None
        if fit is not None:
            fit(self)
            self.spill()
        assert self.chunks  # hidden states are there before other models are loaded

    def enter(self, index: int, shown: Collection[str] = ()) -> None:
        """Take the weights of a layer in. shown: the linears whose outputs will be asked for."""
        super().enter(index)
        self._shown, self._until = frozenset(shown), frozenset[str]()
        self._beside = Spill() if self._spilled else Held  # a file of its own, which is gone with the layer
        self._so_far = {id(chunk): _SoFar() for chunk in self.chunks}
        self._watched = [module for name in self._here() for module in self._watch(name)]

    @torch.inference_mode()
    def leave(self) -> None:
        """Run what is left of the layer on every chunk and drop its weights."""
        for chunk in self.chunks:
            self.advance(chunk)
            self._forget(chunk)
        for module in self._watched:
            del module.forward
        self.drop()

    @torch.inference_mode()
    def outputs(self, names: Sequence[str]) -> Iterator[tuple[str, Values]]:
        """(role, outputs (n, out) of linears of one site at the counted positions, with their bias), chunk by chunk.

        They must have been announced to `enter`, and are there once.
        """
        for chunk in self.chunks:
            so_far = self._so_far[id(chunk)]
            if not so_far.outputs.keys() >= set(names):
                self._run_until(names, chunk)
            yield chunk.role, {name: _at(so_far.outputs[name].get(), chunk.counted) for name in names}
            self._spend(so_far, names)

    @torch.inference_mode()
    def inputs(self, name: str) -> Iterator[tuple[str, torch.Tensor]]:
        """(role, input (n, in) of the named linear at the counted positions), chunk by chunk, under the weights so far."""
        for chunk in self.chunks:
            seen: list[torch.Tensor] = []

            def stop(_: Any, args: tuple[torch.Tensor, ...], seen: list = seen, chunk: Chunk = chunk) -> None:
                seen.append(_at(self._stood(name, args[0], self._so_far[id(chunk)]), chunk.counted))
                raise Reached

            self._run_to(self._module(name), stop, chunk)
            assert seen, f"the walk has gone beyond {name}"
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
            if name in self._so_far[id(chunk)].outputs:  # and with it whatever comes after it in a forward
                self._forget(chunk)

    @torch.inference_mode()
    def routed(self) -> list[tuple[str, Routed]]:
        """(role, what stands before the routed experts of this layer), chunk by chunk; it keeps the weights it saw."""
        return [(chunk.role, self._routed(chunk)) for chunk in self.chunks]

    def bias(self, name: str) -> torch.Tensor | None:
        """The bias (out,) of a linear of this layer, where it has one."""
        found = getattr(self._module(name), "bias", None)
        return None if found is None else found.detach()

    def _routed(self, chunk: Chunk) -> Routed:
        so_far = self._so_far[id(chunk)]

        def stop(experts: Any, args: tuple[torch.Tensor, ...]) -> None:
            so_far.routed = Routed.of(experts, args, chunk.counted)
            raise Reached

        if so_far.routed is None:
            self._run_to(self._experts(), stop, chunk)
        assert so_far.routed is not None
        return so_far.routed

    def _run_to(self, module: torch.nn.Module, stop: Callable[..., None], chunk: Chunk) -> None:
        handle = module.register_forward_pre_hook(stop)
        try:
            self._run(chunk)
        except Reached:
            pass
        finally:
            handle.remove()

    def _run_until(self, names: Sequence[str], chunk: Chunk) -> None:
        """To the end of the attention or MLP in which these linears are."""
        self._until = frozenset(names)
        try:
            self._run(chunk)
        except Reached:
            pass
        finally:
            self._until = frozenset()

    def _run(self, chunk: Chunk) -> torch.Tensor:
        self._running = self._so_far[id(chunk)]
        return super()._run(chunk)

    def _forget(self, chunk: Chunk) -> None:
        """What was computed in this layer no longer holds."""
        self._so_far[id(chunk)] = _SoFar()

    def _stood(self, name: str, given: torch.Tensor, so_far: _SoFar) -> torch.Tensor:
        """The input of a linear at which the walk stands; in front of one that writes it waits in place of what led to it."""
        if not self._linears[name].writes:
            return given
        self._spend(so_far, so_far.outputs.keys() - self._shown)
        if name not in so_far.given:
            so_far.given[name] = self._beside(given)
            return given
        return so_far.given[name].get()

    def _spend(self, so_far: _SoFar, names: Collection[str]) -> None:
        """Drop outputs for their shape; not those that are added to the residual stream, which all that follows reads."""
        for name in names:
            if not self._linears[name].writes:
                so_far.outputs[name] = Held(torch.empty_like(so_far.outputs[name].get(), device="meta"))

    def _watch(self, name: str) -> Iterator[Any]:
        """Let a linear, and the attention or MLP that one which writes ends, run once on a chunk; the modules."""
        module, path = self._module(name), self._family.linears[self._linears[name].role].rpartition(".")[0]
        module.forward = self._once(name, module)
        yield module
        if path and self._linears[name].writes:
            block = self._layer.get_submodule(path)
            block.forward = self._whole(path, block)
            yield block

    def _once(self, name: str, module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(x: torch.Tensor) -> torch.Tensor:
            so_far = self._running
            if name not in so_far.outputs:
                found = type(module).forward(module, so_far.given.pop(name).get() if name in so_far.given else x)
                so_far.outputs[name] = self._beside(found) if self._linears[name].writes else Held(found)
                if self._linears[name].writes:
                    self._spend(so_far, so_far.outputs.keys() - self._shown)
                return found
            found = so_far.outputs[name].get()
            return torch.zeros_like(found, device=x.device) if found.is_meta else found

        return forward

    def _whole(self, path: str, block: Any) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            so_far = self._running
            if path not in so_far.blocks:
                found = type(block).forward(block, *args, **kwargs)
                # Beside it attentions return their weights, which no layer reads.
                found = (found[0], *[None] * (len(found) - 1)) if isinstance(found, tuple) else found
                so_far.blocks[path] = waiting(found, self._beside)
            if self._until and self._until <= so_far.outputs.keys():
                raise Reached
            return back(so_far.blocks[path])

        return forward

    def _module(self, name: str) -> Any:
        linear: Linear = self._linears[name]
        assert linear.layer == self._index, f"the walk stands at layer {self._index}, {name} is elsewhere"
        return self._layer.get_submodule(self._family.linears[linear.role])

    def _here(self) -> list[str]:
        linears = self._linears.items()
        return [name for name, linear in linears if linear.layer == self._index and linear.expert is None]

    def _experts(self) -> torch.nn.Module:
        return expert_modules(self._family, dict(self.model.named_modules()))[self._index]


def _check_walkable(checkpoint: Checkpoint) -> None:
    """Error: UnsupportedError where a layer runs in another way than here; it is not guessed at."""
    if sees(checkpoint.config):
        raise UnsupportedError(NOT_WALKED.format(checkpoint.label, "a vision tower stands beside the language model"))
    if checkpoint.config["model_type"] == "llama4_text":
        raise UnsupportedError(NOT_WALKED.format(checkpoint.label, "its router scales what its experts are given"))


def _at(values: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Values (n, width) at the counted positions; some modules are given tokens in one row, or with an axis for heads."""
    return values.reshape(*counted.shape, -1)[counted]


def _parameter(tensor: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(tensor, requires_grad=False)
