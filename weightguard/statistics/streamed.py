"""The stock model, of which only one part has weights at a time: what stands before the decoder layers, or one layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import groupby
from typing import Any

import torch

from weightguard.checkpoint import (
    FLOATS,
    Checkpoint,
    Linear,
    TensorInfo,
    bypassing,
    decoder_linears,
    family_of,
    match_linears,
)
from weightguard.checkpoint.adapter import PREFIX
from weightguard.statistics.loading import Filler, bare_model, dtype_of, load_adapted

Read = Callable[[str], torch.Tensor]
Part = int | None  # the number of a layer, or None: what stands before the layers
_OF_PEFT = re.compile(r"\.(?:base_layer|original_module)(?=\.)")


class StreamedModel:
    """`model`: the causal model without weights, or with `adapter` the peft model over it, whose factors are there.

    inner: the model without peft. vocabulary: ids it knows. read: on-disk tensor name -> tensor in storage order, None:
    as the files hold it; it is run in `dtype` on `device` whatever it is stored in. Errors: CheckpointError for tensors
    that are missing or that the config makes another shape.
    """

    def __init__(
        self, checkpoint: Checkpoint, read: Read | None, dtype: str, device: torch.device, adapter: Checkpoint | None
    ) -> None:
        self._checkpoint, self._read, self._device = checkpoint, read or checkpoint.read, device
        self._dtype = dtype_of(dtype)
        self._by_row: torch.nn.Module | None = None
        self._plain = bare_model(checkpoint, dtype, device)
        self._filler = Filler(self._plain, checkpoint, dtype)
        self.vocabulary: int = self._plain.get_input_embeddings().weight.shape[0]
        self._filler.check({info.name: info.shape for info in self._stored})
        self.model = self.inner = self._plain
        if adapter is not None:
            self._trained = frozenset(_OF_PEFT.sub("", name.removeprefix(PREFIX)) for name in bypassing(adapter))
            hollow = _hollow(bare_model(checkpoint, dtype, device), device, self._trained)
            self.model = load_adapted(hollow, adapter)
            self.inner = self.model.get_base_model()
        in_memory = match_linears(family_of(checkpoint.config), dict(self._plain.named_modules()))
        self._place = _before_layers(in_memory, self.block)
        self.stack: Any = self.inner.get_submodule(f"{self._place}{self.block}")
        if read is None:
            self._look_up_rows()

    @property
    def block(self) -> str:
        """What the list of layers is called."""
        return family_of(self._checkpoint.config).block

    def sizes(self, part: Part) -> tuple[int, int]:
        """(bytes in the files, parameters) of a part."""
        held = [each for name in self._parts.get(part, ()) for each in self._checkpoint.parts[name]]
        return sum(each.nbytes for each in held), sum(each.numel for each in held)

    def enter(self, part: Part) -> None:
        """Give a part its weights."""
        self._filler.fill({name: partial(self._joined, name) for name in self._parts[part]}, self._device)
        if self.inner is not self._plain:
            self._take_over(part)

    def leave(self, part: Part) -> None:
        """Take the weights of a part away again."""
        for model in (self._plain, self.inner):
            for owner, name, _, held in self._held(model, part):
                owner._parameters[name] = _parameter(held.to("meta"))

    def _take_over(self, part: Part) -> None:
        """What peft left as it is gets the weights that transformers gave the model without peft."""
        plain = {path: held for _, _, path, held in self._held(self._plain, part)}
        before = self._place if part is None else f"{self._place}{self.block}.{part}."
        for owner, name, path, _ in self._held(self.inner, part):
            bare = _OF_PEFT.sub("", path)
            if owner is not self._by_row and bare in plain and f"{before}{bare}" not in self._trained:
                owner._parameters[name] = plain[bare]

    def _look_up_rows(self) -> None:
        """Let the embedding read the rows it is asked for, instead of all of them, which can be larger than any layer."""
        embedding = self.inner.get_input_embeddings()
        paths = [path for owner, _, path, _ in self._held(self.inner, None) if owner is embedding]
        name = f"{self._before}{paths[0]}" if paths else ""
        if name not in self._parts[None]:
            return
        self._parts[None].remove(name)
        self._by_row = embedding
        embedding.padding_idx, whole = None, embedding.forward

        def forward(ids: torch.Tensor) -> torch.Tensor:
            wanted, at = ids.unique(return_inverse=True)
            rows = torch.cat([self._checkpoint.read_rows(name, *run) for run in _runs(wanted.tolist())])
            embedding._parameters["weight"] = _parameter(rows.to(self._device, self._dtype))
            found = whole(at)
            embedding._parameters["weight"] = none
            return found

        none = embedding._parameters["weight"] = _parameter(torch.empty(0, device=self._device, dtype=self._dtype))

        embedding.forward = forward

    def _module(self, model: Any, part: Part) -> Any:
        return model.get_submodule((self._place if part is None else f"{self._place}{self.block}.{part}").rstrip("."))

    def _held(self, model: Any, part: Part) -> Iterator[tuple[Any, str, str, torch.nn.Parameter]]:
        """(module, name in it, path in the part, parameter) of every parameter of a part."""
        top = self._module(model, part)
        for path, held in list(top.named_parameters()):
            if part is not None or not path.startswith(f"{self.block}."):
                owner, _, name = path.rpartition(".")
                yield top.get_submodule(owner), name, path, held

    @cached_property
    def _stored(self) -> list[TensorInfo]:
        return [info for info in self._checkpoint.on_disk if info.dtype in FLOATS]

    @cached_property
    def _before(self) -> str:
        """What stands before the layers in the names on disk."""
        return _before_layers(decoder_linears(self._checkpoint.config, self._checkpoint.tensors), self.block)

    @cached_property
    def _parts(self) -> dict[Part, list[str]]:
        """Part -> the tensors stored for it. A head, a vision tower and layers that are not run are in none."""
        layer = re.compile(re.escape(f"{self._before}{self.block}") + r"\.(\d{1,6})\.")
        found: dict[Part, list[str]] = {None: []}
        for name in (info.name for info in self._stored):
            match = layer.match(name)
            if match or (name.startswith(self._before) and not name.startswith(("lm_head.", "embed_out."))):
                found.setdefault(int(match[1]) if match else None, []).append(name)
        return found

    def _joined(self, name: str) -> torch.Tensor:
        """A stored tensor, experts that are packed in it joined again."""
        parts = self._checkpoint.parts[name]
        return self._read(name) if parts[0].name == name else torch.stack([self._read(part.name) for part in parts])


def _hollow(model: Any, device: torch.device, kept: Container[str]) -> Any:
    """The model with matrices that have a device, as peft wants it, and one number as their memory, but for those `kept`."""
    for path, module in model.named_modules():
        for name, held in module._parameters.items():
            if held is not None:
                whole = held.ndim < 2 or f"{path}.{name}" in kept
                zero = torch.zeros(held.shape if whole else (), dtype=held.dtype, device=device)
                module._parameters[name] = _parameter(zero if whole else zero.expand(held.shape))
    return model


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(start, stop) of ascending numbers that follow one another."""
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        found = [number for _, number in run]
        yield found[0], found[-1] + 1


def _before_layers(linears: Mapping[str, Linear], block: str) -> str:
    """What stands before the layers in the names of linears, "model." for example."""
    return next(iter(linears)).partition(f"{block}.0.")[0]


def _parameter(tensor: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(tensor, requires_grad=False)
