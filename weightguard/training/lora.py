"""LoRA through stock peft: what `--lora` says, and the peft model it makes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weightguard.errors import UsageError

_EXAMPLE = "write for example r=16,alpha=32,targets=q_proj+v_proj"


@dataclass(frozen=True)
class Lora:
    """rank `r`, `alpha` (None: 2r), `targets`: last components of module paths (None: every linear of the decoder)."""

    r: int = 16
    alpha: float | None = None
    targets: tuple[str, ...] | None = None
    dropout: float = 0.0
    rslora: bool = False

    @property
    def scale(self) -> float:
        alpha = 2 * self.r if self.alpha is None else self.alpha
        return alpha / math.sqrt(self.r) if self.rslora else alpha / self.r

    def doubled(self) -> Lora:
        """Of rank 2r with the same scale s: alpha grows by 2, or by √2 with rsLoRA."""
        alpha = 2 * self.r if self.alpha is None else self.alpha
        return replace(self, r=2 * self.r, alpha=alpha * (math.sqrt(2) if self.rslora else 2))

    def settings(self) -> dict[str, Any]:
        alpha = 2 * self.r if self.alpha is None else self.alpha
        said = {"r": self.r, "alpha": alpha, "targets": "+".join(self.targets or ("all",)), "dropout": self.dropout}
        return {**said, "rslora": self.rslora}


def parse_lora(text: str) -> Lora:
    """`r=16,alpha=32,targets=q_proj+v_proj,dropout=0.1,rslora=true`; what is left out has its default. Error: UsageError."""
    values: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = (each.strip() for each in part.partition("="))
        if not equals or key not in _READERS:
            raise UsageError(f"--lora {text}: {part.strip()!r} is none of {', '.join(_READERS)}; {_EXAMPLE}")
        if key in values:
            raise UsageError(f"--lora {text}: {key} is there twice")
        try:
            values[key] = _READERS[key](value)
        except (ValueError, OverflowError):
            raise UsageError(f"--lora {text}: {key}={value} is not usable; {_EXAMPLE}") from None
    return Lora(**values)


def _rank(text: str) -> int:
    return _within(int(text), 1, 2**20)


def _number(text: str) -> float:
    return _within(float(text), 1e-30, 1e30)


def _targets(text: str) -> tuple[str, ...] | None:
    names = tuple(text.split("+"))
    if not all(name.isidentifier() for name in names):
        raise ValueError(text)
    return None if names == ("all",) else names


def _dropout(text: str) -> float:
    return _within(float(text), 0, 0.999)


def _truth(text: str) -> bool:
    known = {"true": True, "false": False}
    return known[text.lower()] if text.lower() in known else _wrong(text)


def _within(value: Any, low: float, high: float) -> Any:
    return value if low <= value <= high else _wrong(value)


def _wrong(value: object) -> Any:
    raise ValueError(str(value))


_READERS = {"r": _rank, "alpha": _number, "targets": _targets, "dropout": _dropout, "rslora": _truth}


def targeted(lora: Lora, linears: Iterable[str], shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """The on-disk names among `linears` that are adapted. Errors: UsageError (an unknown target, a rank beyond a shape)."""
    names = list(linears)
    known = {_last(name) for name in names}
    for target in lora.targets or ():
        if target not in known:
            raise UsageError(f"--lora targets={target}: the decoder's linears are {', '.join(sorted(known))}")
    chosen = [name for name in names if lora.targets is None or _last(name) in lora.targets]
    for name in chosen:
        if lora.r > min(shapes[name]):
            raise UsageError(f"--lora r={lora.r}: beyond the dimensions of tensor {name!r}, {list(shapes[name])}")
    return chosen


def _last(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]


def adapted(model: Any, lora: Lora, tensors: Iterable[str], base: str | None, seed: int) -> Any:
    """A stock peft model over `model` with factors over these on-disk tensors; `base`: what adapter_config.json names."""
    import peft
    import torch

    from weightguard.statistics.loading import quiet

    names = sorted({_last(name) for name in tensors})
    fan = any(type(module).__name__ == "Conv1D" for module in model.modules())
    alpha = 2 * lora.r if lora.alpha is None else lora.alpha
    config = peft.LoraConfig(
        r=lora.r, lora_alpha=int(alpha) if alpha == int(alpha) else alpha, target_modules=names,
        lora_dropout=lora.dropout, use_rslora=lora.rslora, fan_in_fan_out=fan, task_type="CAUSAL_LM", bias="none",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        found = peft.get_peft_model(model, config)
    found.peft_config["default"].base_model_name_or_path = base
    return found
