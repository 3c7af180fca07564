"""`landscape`: attack success around a checkpoint, whose weights are moved in memory only, bound to its files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightguard.api.collect import Running
from weightguard.api.evaluating import identified
from weightguard.api.subject import Subject, open_subject
from weightguard.checkpoint.writer import check_apart, check_free, write_file
from weightguard.errors import MismatchError, UndecidedError
from weightguard.measurement import Report

if TYPE_CHECKING:
    from weightguard.data import Dataset
    from weightguard.validate.evaluation import Side
    from weightguard.validate.landscape import Walk

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Asked:
    """What `landscape` was asked: paths and references as typed."""

    model: str
    harmful: str
    towards: str | None
    judge: str
    disjoint_from: Sequence[str]
    limit: int | None
    outs: Sequence[str]
    force: bool


def run_landscape(
    asked: Asked, walk: Callable[[], Walk], running: Running, offline: bool, progress: Progress
) -> Report:
    """The report, written to every output in the form its suffix names. Errors: those of evaluate, MismatchError for
    another model that does not fit, UndecidedError when a file changed meanwhile."""
    from weightguard.report.landscape import drawn, form_of
    from weightguard.validate.judges.choose import choose

    forms = {out: form_of(out) for out in asked.outs}
    for out in asked.outs:
        check_free(Path(out), force=asked.force)
    settings, dataset = walk(), _prompts(asked)
    subjects = [open_subject(each, offline=offline, search=False) for each in (asked.model, asked.towards) if each]
    for out in asked.outs:
        check_apart(Path(out), [path for subject in subjects for path in subject.inputs])
    judge = choose(asked.judge, dtype=running.dtype, device=running.device, offline=offline)
    report = _walked(asked, settings, dataset, judge, subjects, running, progress)
    for out, form in forms.items():
        write_file(Path(out), drawn(report, form).encode(), force=asked.force)
    return report


def _prompts(asked: Asked) -> Dataset:
    from weightguard.data import read_rows
    from weightguard.validate.overlap import check_disjoint

    dataset = read_rows(asked.harmful, limit=asked.limit)
    for each in asked.disjoint_from:
        check_disjoint(dataset, read_rows(each))
    return dataset


def _walked(
    asked: Asked, walk: Walk, dataset: Dataset, judge: Any, subjects: Sequence[Subject], running: Running, progress: Progress
) -> Report:  # fmt: skip
    import torch

    from weightguard.statistics.loading import pinned_threads
    from weightguard.validate.landscape import landscape

    before = [identified(subject, progress) for subject in subjects]
    with pinned_threads(running.thread_count), torch.inference_mode():
        side = _side(subjects[0], running)
        other = None if asked.towards is None else _other(subjects[1], side, asked.towards, running)
        found = landscape(side, dataset, judge, walk, other, f"--towards {asked.towards}", progress)
    after = [identified(subject, progress) for subject in subjects]
    changed = [name for a, b in zip(before, after, strict=True) for name in a.differing(b)]
    if changed:
        raise UndecidedError(
            f"the weights changed while they were looked at ({changed[0]}); nothing is shown, do it again"
        )
    data = {"harmful": {"source": dataset.source, "sha256": dataset.sha256, "rows": len(dataset.rows)}}
    towards = before[1].as_dict() if other is not None else None
    return Report(before[0], None, found.measurements, data, _settings(walk, judge, side, running), dataset.notes,
                  landscape={**found.shape, "towards": towards})  # fmt: skip


def _side(subject: Subject, running: Running) -> Side:
    """The whole model; an adapter is merged into it, in memory, for its factors are no point of the landscape."""
    from weightguard.statistics.loading import load_adapted, load_model, load_tokenizer
    from weightguard.validate.evaluation import Side

    model = load_model(subject.model, dtype=running.dtype, device=running.device)
    if subject.adapter is not None:
        model = load_adapted(model, subject.adapter).merge_and_unload()
    return Side(model, load_tokenizer(*subject.directories), subject.model.config, "model")


def _other(subject: Subject, side: Side, said: str, running: Running) -> Any:
    found = _side(subject, running)
    if found.config.get("model_type") != side.config.get("model_type"):
        kinds = found.config.get("model_type"), side.config.get("model_type")
        raise MismatchError(
            f"--towards {said}: architecture {kinds[0]}, the model is {kinds[1]}; there is no way between them"
        )
    if found.tokenizer.get_vocab() != side.tokenizer.get_vocab():
        raise MismatchError(f"--towards {said}: has another vocabulary than the model; there is no way between them")
    return found.model


def _settings(walk: Walk, judge: Any, side: Side, running: Running) -> dict[str, Any]:
    from weightguard.data.templates import template_for
    from weightguard.rewrite.manifest import versions

    template = template_for(side.tokenizer, None)
    return {
        "seed": walk.seed, "max_new_tokens": walk.max_new_tokens, "batch_size": walk.batch_size,
        "directions": walk.directions, "points": walk.side, "range": walk.reach, "plane": walk.plane, "basin": walk.basin,
        "dtype": running.dtype, "threads": running.thread_count, "device": running.device, "template": template.name,
        "template_sha256": template.sha256, "judges": [{"id": judge.id, "revision": judge.revision}],
        "versions": versions(),
    }  # fmt: skip
