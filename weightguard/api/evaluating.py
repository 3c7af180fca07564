"""`evaluate`: a checkpoint, alone or against a reference, measured on the data given and bound to its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightguard.api.collect import Running
from weightguard.api.subject import Subject, open_subject
from weightguard.checkpoint.hub import shown
from weightguard.checkpoint.writer import check_apart
from weightguard.errors import UndecidedError, UsageError
from weightguard.measurement import ROLES, Measurement, Report
from weightguard.measurement import Subject as Identity

if TYPE_CHECKING:
    from weightguard.checkpoint import Checkpoint
    from weightguard.data import Dataset
    from weightguard.validate.evaluation import Side

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Sets:
    """Data references by role, judges and tasks of lm-eval as typed, and files that must share no prompt with the data."""

    data: Mapping[str, str]
    judges: Sequence[str] = ("refusal-phrases",)
    disjoint_from: Sequence[str] = ()
    limit: int | None = None
    lm_eval: Sequence[str] = ()


@dataclass(frozen=True)
class Asking:
    """How models are asked; see validate.evaluation.Settings. cipher: KIND:SEED, in which they are asked, or plain."""

    match: str = "exact"
    seed: int = 0
    max_new_tokens: int = 64
    batch_size: int = 32
    examples: int = 3
    cipher: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("max_new_tokens", 1), ("batch_size", 1), ("examples", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise UsageError(f"--{name.replace('_', '-')} {value}: must be at least {least}")


@dataclass(frozen=True)
class Evaluated:
    """The report, and the files that were not the same after the evaluation as before (then it proves nothing).

    reference: what was measured of the reference alone.
    """

    report: Report
    changed: tuple[str, ...] = field(default=())
    reference: tuple[Measurement, ...] = ()


def identified(subject: Subject, progress: Progress, stage: str = "read") -> Identity:
    """sha256 of every file of a model; of an adapter with its base, under `adapter/` and `base/`."""
    from weightguard.checkpoint.digests import file_digests

    parts = {"": subject.model} if subject.adapter is None else {"base/": subject.model, "adapter/": subject.adapter}
    files: dict[str, str] = {}
    for prefix, part in parts.items():
        found = file_digests(part.directory, lambda done, total: progress(stage, done, total))
        files |= {prefix + name: digest for name, digest in found.items()}
    main = subject.adapter or subject.model
    return Identity("+".join(_label(part) for part in parts.values()), main.revision, files)


def _label(part: Checkpoint) -> str:
    """Hub id and commit, or the name of the folder without the way to it."""
    return part.label if part.revision else shown(part.directory.absolute().name)


def run_evaluate(
    model: str,
    reference: str | None,
    sets: Sets,
    asking: Asking,
    running: Running,
    offline: bool,
    progress: Progress,
    out: Path | None = None,
) -> Report:
    """The report, which will be written to `out`. Error: UndecidedError when a file changed while it was made."""
    found = evaluated(model, reference, sets, asking, running, offline, progress, out)
    if found.changed:
        raise UndecidedError(
            f"the weights changed while they were evaluated ({found.changed[0]}); nothing is decided, evaluate again"
        )
    return found.report


def evaluated(
    model: str,
    reference: str | None,
    sets: Sets,
    asking: Asking,
    running: Running,
    offline: bool,
    progress: Progress,
    out: Path | None = None,
) -> Evaluated:
    """Open, read, run, judge; every file is hashed before and after. Data and judges are opened before any model."""
    import torch

    from weightguard.statistics.loading import pinned_threads
    from weightguard.validate.evaluation import Settings, evaluate
    from weightguard.validate.harness import Harness, open_tasks, task_rows
    from weightguard.validate.judges.choose import choose
    from weightguard.validate.judges.matching import matcher
    from weightguard.validate.overlap import check_judges

    matcher(asking.match)
    data, others = _read(sets)
    tasks = open_tasks(sets.lm_eval)
    subjects = [open_subject(each, offline=offline, search=False) for each in (model, reference) if each is not None]
    if out is not None:
        check_apart(out, [path for subject in subjects for path in subject.inputs])
    judges = [choose(spec, dtype=running.dtype, device=running.device, offline=offline) for spec in sets.judges]
    check_judges([judge.id for judge in judges])
    before = [identified(s, progress) for s in subjects]
    told = {name: value for name, value in vars(asking).items() if name != "cipher"}
    settings = Settings(**told, max_length=running.max_length)
    harness = Harness(asking.batch_size, sets.limit, asking.seed)
    with pinned_threads(running.thread_count), torch.inference_mode():
        names = ("model", "reference")
        sides = [_side(s, name, running, asking.cipher) for s, name in zip(subjects, names, strict=False)]
        found = evaluate(sides[0], sides[1] if len(sides) > 1 else None, data, judges, settings, progress,
                         lambda side: [task_rows(side, task, harness, progress) for task in tasks])  # fmt: skip
    after = [identified(s, progress) for s in subjects]
    changed = tuple(name for a, b in zip(before, after, strict=True) for name in a.differing(b))
    report = Report(
        before[0], before[1] if len(before) > 1 else None, found.measurements, _facts(data) | _documents(found.measurements),
        _settings(asking, running, sides, judges) | {"disjoint_from": others}, found.notes, found.examples,
    )  # fmt: skip
    return Evaluated(report, changed, found.reference)


def _read(sets: Sets) -> tuple[dict[str, Dataset], list[dict[str, str]]]:
    """The sets by role, and what was read to see that they share no row with it."""
    from weightguard.data import read_rows
    from weightguard.validate.overlap import check_disjoint

    if not sets.data and not sets.lm_eval:
        flags = (*ROLES, "lm_eval")
        raise UsageError(f"nothing to evaluate with; give {', '.join('--' + r.replace('_', '-') for r in flags)}")
    if not sets.judges:
        raise UsageError("no judge; give --judge refusal-phrases or another")
    found = {role: read_rows(sets.data[role], limit=sets.limit) for role in ROLES if role in sets.data}
    others = [read_rows(reference) for reference in sets.disjoint_from]
    for other in others:
        for dataset in found.values():
            check_disjoint(dataset, other)
    return found, [{"source": other.source, "sha256": other.sha256} for other in others]


def _side(subject: Subject, name: str, running: Running, spoken: str | None) -> Side:
    from weightguard.data import Cipher, cipher
    from weightguard.statistics.loading import load_adapted, load_model, load_tokenizer
    from weightguard.validate.evaluation import Side

    model = load_model(subject.model, dtype=running.dtype, device=running.device)
    if subject.adapter is not None:
        model = load_adapted(model, subject.adapter)
    tokenizer = load_tokenizer(*subject.directories)
    chosen = Cipher.plain() if spoken is None else cipher(spoken, tokenizer.get_vocab())
    return Side(model, tokenizer, subject.model.config, name, chosen)


def _facts(data: Mapping[str, Dataset]) -> dict[str, dict[str, Any]]:
    return {role: {"source": d.source, "sha256": d.sha256, "rows": len(d.rows)} for role, d in data.items()}


def _documents(measurements: Sequence[Measurement]) -> dict[str, dict[str, Any]]:
    """The documents of lm-eval's tasks, under the names of the judges they were measured by."""
    found = [m for m in measurements if (m.judge or "").startswith("lm-eval:") and not m.name.endswith("_change")]
    return {m.judge or "": {"source": m.judge, "sha256": m.data, "rows": m.n} for m in found}


def _settings(asking: Asking, running: Running, sides: Sequence[Side], judges: Sequence[Any]) -> dict[str, Any]:
    from weightguard.data.templates import template_for
    from weightguard.rewrite.manifest import versions

    template = template_for(sides[0].tokenizer, None)
    return {
        **{name: value for name, value in vars(asking).items() if name != "examples"},
        "dtype": running.dtype,
        "threads": running.thread_count,
        "device": running.device,
        "template": template.name,
        "template_sha256": template.sha256,
        "judges": [{"id": judge.id, "revision": judge.revision} for judge in judges],
        "versions": versions(),
    }
