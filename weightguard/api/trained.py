"""A trained model to files: every weight under the names and dtypes of the input, or a stock adapter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightguard.api.subject import Subject
from weightguard.checkpoint import Merged, Resolved, open_checkpoint, strict_json
from weightguard.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy

    from weightguard.plan import Edit
    from weightguard.rewrite import Manifest, Options

Progress = Callable[[str, int, int], None]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Publication:
    """What is said of a result, and where it goes. said: method, paper and options; inputs, facts: for the manifest."""

    subject: Subject
    out: Path
    said: tuple[str, str, Mapping[str, Any]]
    inputs: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, Any]
    options: Options
    progress: Progress


def check_writable(subject: Subject, model: Any) -> None:
    """Every parameter has a tensor of its name in the files, to which training could be written. Error: UnsupportedError."""
    from weightguard.statistics.parameters import known_targets

    held = {id(target.parameter) for target in known_targets(model, subject.model.tensors).values()}
    lost = next((name for name, parameter in model.named_parameters() if id(parameter) not in held), None)
    if lost is not None:
        raise UnsupportedError(
            f"{subject.model.label}: the files hold {lost!r} in other pieces or under another name, so that its training "
            f"could not be written back; give --lora"
        )


def publish_full(to: Publication, model: Any) -> Manifest:
    """A checkpoint in the names, dtypes and shards of the input; what was not trained is carried over byte for byte."""
    from weightguard.plan import Plan, Replace
    from weightguard.rewrite import rewrite
    from weightguard.statistics.parameters import known_targets

    edits: dict[str, Edit] = {}
    for name, target in known_targets(model, to.subject.model.tensors).items():
        if target.parameter.requires_grad:
            values = target.oriented(target.parameter.detach())
            edits[name] = Replace(name, _as_matrix(values.cpu().float().numpy()))
    plan = Plan(to.said[0], to.said[1], "weight", to.said[2], edits, _evidence(to.subject, edits))
    return rewrite(plan, to.subject.sources("weight"), to.out, to.inputs, to.facts, to.progress, to.options)


def _as_matrix(values: numpy.ndarray) -> numpy.ndarray:
    return values if values.ndim == 2 else values.reshape(-1, values.shape[-1] if values.ndim else 1)


def _evidence(subject: Subject, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    named = subject.named
    known = {n: {"layer": named[n].layer, "role": named[n].role} if n in named else {"role": "other"} for n in names}
    return {name: {**place, "shape": list(subject.model.info(name).shape)} for name, place in known.items()}


def publish_lora(to: Publication, model: Any, *, residual: bool) -> Manifest:
    """A stock peft adapter whose config names its base. residual: SaLoRA's own form, with the base it needs below it."""
    from weightguard.rewrite import publish_adapter

    def make(directory: Path) -> None:
        _write_adapter(directory, to.subject, model)
        if residual:
            _split(directory, to)

    return publish_adapter(to.out, make, to.said, to.inputs, to.facts, to.progress, to.options)


def _write_adapter(directory: Path, subject: Subject, model: Any) -> None:
    """What peft itself writes, over the untouched base."""
    from weightguard.statistics.loading import quiet

    model.peft_config["default"].revision = subject.model.revision
    targets = model.peft_config["default"].target_modules
    if not isinstance(targets, str):  # a set, whose order hangs on the hash seed of the process
        model.peft_config["default"].target_modules = sorted(targets)
    with quiet():
        model.save_pretrained(directory, save_embedding_layers=False)


def _split(directory: Path, to: Publication) -> None:
    """An adapter [A; A0], [C B, −C B0] into `base`, W − s·C B0 A0, and an adapter A, C B of half the rank over it."""
    from safetensors.torch import load_file, save_file

    from weightguard.plan import Plan
    from weightguard.rewrite import Options, rewrite

    whole = Merged(to.subject.model, open_checkpoint(Resolved(directory, None, None, "the adapter", None)))
    config = dict(whole.adapter.config)
    half = config["r"] // 2
    edits = {name: _constant(whole, name, half) for name in whole.pairs}
    options = {**to.said[2], "part": "base"}
    plan = Plan(to.said[0], to.said[1], "weight", options, edits, _evidence(to.subject, edits))
    # Verified as a part of the whole, so not twice.
    rewrite(plan, to.subject.sources("weight"), directory / "base", to.inputs, to.facts, to.progress,
            Options(verify_write=False))  # fmt: skip
    tensors = load_file(directory / WEIGHTS)
    learnt = {n: (t[:half] if ".lora_A." in n else t[:, :half]).contiguous() for n, t in tensors.items()}
    save_file(learnt, directory / WEIGHTS, {"format": "pt"})
    alpha = config["lora_alpha"] / (math.sqrt(2) if config.get("use_rslora") else 2)
    config |= {"r": half, "lora_alpha": alpha, "revision": None}
    config["base_model_name_or_path"] = str(to.out.absolute() / "base")
    (directory / CONFIG).write_bytes(strict_json.dump(config))


def _constant(whole: Merged, name: str, half: int) -> Edit:
    """W + (s·B'_2)·A'_2 with the halves of the factors that did not learn, B'_2 = −C B0 and A'_2 = A0."""
    from weightguard.plan import LowRank

    pair = whole.pairs[name]
    left = pair.scaling * whole.adapter.read(pair.b)[:, half:].double()
    return LowRank(name, left.float().numpy(), whole.adapter.read(pair.a)[half:].contiguous().numpy())
