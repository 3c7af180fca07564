"""One forward pass over the calibration rows serves every linear: q, k, v share a hook, and so do gate and up."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy
import torch

from weightguard.checkpoint import Linear, LoraPair, family_of, match_linears
from weightguard.data import Encoded
from weightguard.errors import CheckpointError, DataError
from weightguard.kernels import ops
from weightguard.statistics.experts import expert_count, expert_modules, packs_experts, routed

Progress = Callable[[int, int], None]
Take = Callable[[str, torch.Tensor, torch.Tensor], None]
BATCH_TOKENS = 4096


def input_square_sums(
    model: Any,
    config: dict,
    linears: Mapping[str, Linear],
    rows: Sequence[Encoded],
    progress: Progress,
    pairs: Mapping[str, LoraPair] | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> dict[str, numpy.ndarray]:
    """Σ_t x_{t,j}² over the counted tokens: on-disk tensor name -> float64 (in,).

    model: a causal model, or a peft model with `pairs` (base tensor -> pair), which adds lora_A's and lora_B's inputs.
    Error: DataError naming a row that is longer than the model can read.
    """
    found = SquareSums(model, config, linears, pairs)
    run_hooked(model, config, found.hooked, rows, found.take, progress, batch_tokens)
    return found.by_name()


class SquareSums:
    """Σ_t x_{t,j}² as it grows. `hooked`: key -> the module whose inputs `take` is to be given."""

    def __init__(
        self,
        model: Any,
        config: dict,
        linears: Mapping[str, Linear],
        pairs: Mapping[str, LoraPair] | None = None,
    ) -> None:
        self.hooked = _hooked(model, config, pairs)
        self._keys = _keys(linears, pairs)
        self._sums: dict[str, torch.Tensor] = {}

    def take(self, key: str, inputs: torch.Tensor, counted: torch.Tensor) -> None:
        found = ops.square_sums(inputs.detach(), counted)
        self._sums[key] = self._sums[key] + found if key in self._sums else found

    def by_name(self) -> dict[str, numpy.ndarray]:
        """On-disk tensor name -> float64 (in,)."""
        return {name: self._sums[key].cpu().numpy() for name, key in self._keys.items()}


def run_hooked(
    model: Any,
    config: dict,
    hooked: Mapping[str, torch.nn.Module],
    rows: Sequence[Encoded],
    take: Take,
    progress: Progress,
    batch_tokens: int = BATCH_TOKENS,
) -> None:
    """Run the rows once; `take` sees what each module is given, as in `watched`.

    Error: DataError naming a row that is longer than the model can read.
    """
    check_lengths(rows, config, model)
    with watched(hooked, take) as count:
        done = 0
        for batch in batches(rows, batch_size(model.dtype, batch_tokens)):
            ids, attention, counted = padded(batch, _device_of(model))
            count(counted)
            _run(model, ids, attention)
            done += len(batch)
            progress(done, len(rows))


def batch_size(dtype: torch.dtype, batch_tokens: int = BATCH_TOKENS) -> int:
    """Padded tokens of a batch: one row in float64.

    Padding behind a sliding window sees no key; float64 attention answers that with NaN, which spreads: no padding then.
    """
    return 1 if dtype == torch.float64 else batch_tokens


@contextlib.contextmanager
def watched(hooked: Mapping[str, torch.nn.Module], take: Take) -> Iterator[Callable[[torch.Tensor], None]]:
    """While open, `take(key, inputs (rows, longest, in), counted (rows, longest))` sees what each module is given; of
    experts it sees the tokens (n, in) sent to each of them, counted (n,).

    Gives a function that is to be told, before each batch, which positions count.
    """
    now: list[torch.Tensor] = []
    handles = [
        module.register_forward_pre_hook(lambda module, given, keys=keys: _see(module, given, keys, take, now[0]))
        for module, keys in _by_module(hooked).items()
    ]
    try:
        yield lambda counted: now.__setitem__(slice(None), [counted])
    finally:
        for handle in handles:
            handle.remove()


def _by_module(hooked: Mapping[str, torch.nn.Module]) -> dict[torch.nn.Module, dict[str, None]]:
    found: dict[torch.nn.Module, dict[str, None]] = {}
    for key, module in hooked.items():
        found.setdefault(module, {})[key] = None
    return found


def _see(module: torch.nn.Module, given: Any, keys: Mapping[str, None], take: Take, counted: torch.Tensor) -> None:
    """A module that packs experts has a key for every input of every expert, any other module has one key."""
    first = next(iter(keys))
    if not packs_experts(module):
        take(first, given[0], counted)
        return
    layer = first.partition(".")[0]
    for site, expert, inputs, chosen in routed(module, given, counted):
        if (key := f"{layer}.{site}.{expert}") in keys:
            take(key, inputs, chosen)


def check_lengths(rows: Sequence[Encoded], config: dict, model: Any) -> None:
    """Error: DataError naming a row that is longer than the model has positions."""
    if not family_of(config).learned_positions:
        return
    most = model.config.max_position_embeddings
    for row in rows:
        if len(row.ids) > most:
            raise DataError(
                f"row {row.number} of the data has {len(row.ids)} tokens, but the model has positions for {most} only; "
                f"give --max-length {most}, or shorter rows"
            )


def _hooked(model: Any, config: dict, pairs: Mapping[str, LoraPair] | None) -> dict[str, torch.nn.Module]:
    """Key -> the module whose input is taken: one per input site, and every lora_B, whose input A·x is its own."""
    hooked = site_modules(model, config)
    modules = dict(model.named_modules())
    for pair in (pairs or {}).values():
        ends = f"{pair.module}.lora_B.default"
        found = [p for p in modules if p.endswith(ends)]
        if not found:
            raise CheckpointError(f"adapter: peft did not build {pair.module}; its target_modules and tensors disagree")
        hooked[pair.b] = modules[found[0]]
    return hooked


def site_modules(model: Any, config: dict) -> dict[str, torch.nn.Module]:
    """Site key -> one module whose input it is, for every input site of the decoder."""
    modules = dict(model.named_modules())
    found: dict[str, torch.nn.Module] = {}
    for path, linear in match_linears(family_of(config), modules).items():
        found.setdefault(site_key(linear), modules[path])
    for layer, module in expert_modules(family_of(config), modules).items():
        sites = itertools.product(("expert_in", "expert_out"), range(expert_count(module)))
        found |= {f"{layer}.{site}.{expert}": module for site, expert in sites}
    return found


def site_key(linear: Linear) -> str:
    """Linears with one key share one input."""
    return ".".join(map(str, linear.site))


def _keys(linears: Mapping[str, Linear], pairs: Mapping[str, LoraPair] | None) -> dict[str, str]:
    keys = {name: site_key(linear) for name, linear in linears.items()}
    for tensor, pair in (pairs or {}).items():
        if tensor in linears:
            keys |= {pair.a: site_key(linears[tensor]), pair.b: pair.b}
    return keys


@torch.inference_mode()
def _run(model: Any, ids: torch.Tensor, attention: torch.Tensor) -> None:
    # The decoder alone: no logits, which for a large vocabulary would be most of the memory.
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    inner.base_model(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False)


def batches(rows: Sequence[Encoded], batch_tokens: int) -> Iterator[list[Encoded]]:
    """Rows of similar length together, at most `batch_tokens` padded tokens a batch, in an order fixed by the data."""
    ordered = sorted(rows, key=lambda row: len(row.ids))
    batch: list[Encoded] = []
    for row in ordered:
        if batch and len(row.ids) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def padded(batch: Sequence[Encoded], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids int64, attention mask int64, counted bool), all (rows, longest), padded on the right with id 0."""
    width = max(len(row.ids) for row in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.int64)
    attention = torch.zeros_like(ids)
    counted = torch.zeros(len(batch), width, dtype=torch.bool)
    for i, row in enumerate(batch):
        size = len(row.ids)
        ids[i, :size] = torch.from_numpy(row.ids.astype(numpy.int64))
        attention[i, :size] = 1
        counted[i, :size] = torch.from_numpy(row.counted)
    return ids.to(device), attention.to(device), counted.to(device)


def _device_of(model: Any) -> torch.device:
    return model.get_input_embeddings().weight.device
