"""`inspect --activations`: what harmful and benign prompts look like inside a model, and inside its base."""

from __future__ import annotations

import dataclasses
import math
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
    """layers: one view a layer, the embedding first. harmful, benign: where the prompts came from and how many.

    harmful_loss, base_harmful_loss: nats per token of the harmful answers, over the rows that have one that is no refusal.
    """

    model: str
    base: str | None
    harmful: tuple[str, int]
    benign: tuple[str, int]
    layers: tuple[LayerView, ...]
    harmful_loss: float | None = None
    base_harmful_loss: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, which `schema` describes."""
        layers = [{**dataclasses.asdict(view), "overlap": view.overlap} for view in self.layers]
        return {"schema": SCHEMA, "version": VERSION, "model": self.model, "base": self.base,
                "harmful": list(self.harmful), "benign": list(self.benign), "harmful_loss": self.harmful_loss,
                "base_harmful_loss": self.base_harmful_loss, "layers": layers}  # fmt: skip


@dataclass(frozen=True)
class _Seen:
    """What one model makes of both sets: states (layers + 1, prompts, hidden) of each, and the harmful loss."""

    harmful: torch.Tensor
    benign: torch.Tensor
    loss: float | None


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
    ours = _seen(model, sets, running, progress)
    theirs = None if origin is None else _seen(origin, sets, running, progress)
    said = [(each.source, len(each.rows)) for each in sets]
    fits = theirs is not None and theirs.harmful.shape == ours.harmful.shape
    layers = tuple(views(ours.harmful, ours.benign, (theirs.harmful, theirs.benign) if theirs and fits else None))
    label, loss = (None, None) if origin is None or theirs is None else (_label(origin), theirs.loss)
    return Activations(_label(model), label, said[0], said[1], layers, ours.loss, loss)


def _label(subject: Subject) -> str:
    return subject.model.label if subject.adapter is None else f"{subject.model.label}+{subject.adapter.label}"


def _seen(subject: Subject, sets: list[Dataset], running: Running, progress: Progress) -> _Seen:
    from weightguard.statistics.activations import last_states
    from weightguard.statistics.loading import load_adapted, load_model, load_tokenizer, pinned_threads
    from weightguard.validate.generation import prompt_ids

    tokenizer = load_tokenizer(*subject.directories)
    with pinned_threads(running.thread_count):
        model = load_model(subject.model, dtype=running.dtype, device=running.device)
        if subject.adapter is not None:
            model = load_adapted(model, subject.adapter)
        prompts = [prompt_ids(each.rows, tokenizer, each.source) for each in sets]
        states = [last_states(model, each, lambda i, n: progress("prompts", i, n)) for each in prompts]
        return _Seen(states[0], states[1], _harmful_loss(model, sets[0], tokenizer, running.max_length, progress))


def _harmful_loss(model: Any, harmful: Dataset, tokenizer: Any, max_length: int, progress: Progress) -> float | None:
    """None where no row has an answer other than a refusal."""
    from weightguard.validate.generation import context_of
    from weightguard.validate.judges.openings import is_refusal
    from weightguard.validate.metrics.forced import encoded_answers, losses

    answers = [None if row.response is None or is_refusal(row.response) else row.response for row in harmful.rows]
    rows = encoded_answers(harmful, answers, tokenizer, min(max_length, context_of(model)))
    found = losses(model, rows, lambda i, n: progress("harmful loss", i, n))
    return math.fsum(found) / len(found) if found else None
