"""`inspect --activations`: what harmful and benign prompts look like inside a model, and inside its base."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weightguard.api.collect import Progress, Running
from weightguard.api.subject import Subject, open_subject
from weightguard.errors import DataError

if TYPE_CHECKING:
    import torch

    from weightguard.data import Dataset
    from weightguard.statistics.activations import LayerView

LEAST = 8  # prompts of each kind; a direction of fewer says nothing
SCHEMA, VERSION = "weightguard-activations", 1


@dataclass(frozen=True)
class Activations:
    """layers: one view a layer, the embedding first. harmful, benign: where the prompts came from and how many."""

    model: str
    base: str | None
    harmful: tuple[str, int]
    benign: tuple[str, int]
    layers: tuple[LayerView, ...]

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, schema `weightguard-activations`, version 1."""
        layers = [{**dataclasses.asdict(view), "overlap": view.overlap} for view in self.layers]
        return {"schema": SCHEMA, "version": VERSION, "model": self.model, "base": self.base,
                "harmful": list(self.harmful), "benign": list(self.benign), "layers": layers}  # fmt: skip


def run_activations(
    reference: str, harmful: str, benign: str, base: str | None, running: Running, *, offline: bool, progress: Progress
) -> Activations:
    """Run MODEL, and BASE where given, on the prompts of two data sets. Errors: DataError, CheckpointError."""
    from weightguard.data import read_rows
    from weightguard.statistics.activations import views

    sets = [read_rows(data) for data in (harmful, benign)]
    for found in sets:
        if len(found.rows) < LEAST:
            raise DataError(f"{found.source}: {len(found.rows)} prompts; --activations needs at least {LEAST}")
    model = open_subject(reference, offline=offline, search=False)
    origin = None if base is None else open_subject(base, offline=offline, search=False)
    ours = _states(model, sets, running, progress)
    theirs = None if origin is None else _states(origin, sets, running, progress)
    said = [(each.source, len(each.rows)) for each in sets]
    layers = tuple(views(*ours, None if theirs is None or theirs[0].shape != ours[0].shape else theirs))
    return Activations(_label(model), None if origin is None else _label(origin), said[0], said[1], layers)


def _label(subject: Subject) -> str:
    return subject.model.label if subject.adapter is None else f"{subject.model.label}+{subject.adapter.label}"


def _states(
    subject: Subject, sets: list[Dataset], running: Running, progress: Progress
) -> tuple[torch.Tensor, torch.Tensor]:
    from weightguard.statistics.activations import last_states
    from weightguard.statistics.loading import load_adapted, load_model, load_tokenizer, pinned_threads
    from weightguard.validate.generation import prompt_ids

    tokenizer = load_tokenizer(*subject.directories)
    with pinned_threads(running.thread_count):
        model = load_model(subject.model, dtype=running.dtype, device=running.device)
        if subject.adapter is not None:
            model = load_adapted(model, subject.adapter)
        prompts = [prompt_ids(each.rows, tokenizer, each.source) for each in sets]
        harmful, benign = (last_states(model, each, lambda i, n: progress("prompts", i, n)) for each in prompts)
    return harmful, benign
