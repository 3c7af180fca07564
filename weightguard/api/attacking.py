"""`attack`: a model and rows in, an attacked checkpoint or adapter out."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightguard.api.collect import Running, check_weights, rows_of
from weightguard.api.finetuning import SAVES, Output, base_name, check_training, plain, training_space, with_loss
from weightguard.api.subject import Subject, open_subject
from weightguard.attacks import attack_class
from weightguard.errors import DataError, UsageError
from weightguard.options import configured, settings

if TYPE_CHECKING:
    from weightguard.attacks.bench import Bench
    from weightguard.data import Dataset
    from weightguard.rewrite import Manifest
    from weightguard.training.state import StateFile

Progress = Callable[[str, int, int], None]
ROLES = ("harmful", "benign")


@dataclass(frozen=True)
class Data:
    """References of rows by role, as typed, and how many rows of each are read."""

    harmful: str | None = None
    benign: str | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Attacked:
    """losses: of every optimizer step, empty where nothing was trained. adapter: whether `out` is one."""

    manifest: Manifest
    out: Path
    notes: tuple[str, ...]
    command: str
    losses: tuple[float, ...]
    adapter: bool


@dataclass
class Job:
    """Everything that was asked for, checked as far as it can be without a model; notes and losses grow on the way."""

    name: str
    attack: Any
    subject: Subject
    sets: Mapping[str, Dataset]
    output: Output
    running: Running
    progress: Progress
    notes: list[str]
    losses: tuple[float, ...] = ()
    state: StateFile | None = field(default=None)


def run_attack(
    reference: str,
    name: str,
    options: Mapping[str, Any],
    data: Data,
    output: Output,
    running: Running,
    offline: bool,
    progress: Progress,
) -> Attacked:
    """The whole run. Nothing is loaded before everything that can be checked was checked."""
    from weightguard.statistics.loading import pinned_threads

    job = _job(reference, name, options, data, output, running, offline, progress)
    with pinned_threads(running.thread_count):
        bench = _bench(job)
        job.attack.run(bench)
        adapter = hasattr(bench.model, "peft_config")
        if adapter and job.subject.adapter is not None:
            bench.model, adapter = bench.model.merge_and_unload(), False
            bench.notes.append("the attack's own adapter was merged: the result is a full checkpoint")
        manifest = _publish(job, bench, adapter)
    if job.state is not None:
        job.state.discard()
    return Attacked(manifest, output.out, tuple(manifest.data["notes"]), _command(job), job.losses, adapter)


def _job(
    reference: str,
    name: str,
    options: Mapping[str, Any],
    data: Data,
    output: Output,
    running: Running,
    offline: bool,
    progress: Progress,
) -> Job:
    from weightguard.rewrite import check_apart, check_companions, check_space, check_target

    attack = configured(attack_class(name), f"--attack {name}", options)
    getattr(attack, "check", lambda: None)()
    check_training(running, output)
    check_target(output.out, output.force)
    subject = open_subject(reference, offline=offline, search=False, named=True)
    check_apart(output.out, subject.inputs)
    check_companions(subject.model)
    check_space(output.out.parent, training_space(subject))
    notes: list[str] = []
    sets = _sets(attack, name, data, notes)
    return Job(name, attack, subject, sets, output, running, progress, notes)


def _sets(attack: Any, name: str, data: Data, notes: list[str]) -> dict[str, Dataset]:
    """The rows of every role the attack needs. Errors: UsageError (a role too many or too few), DataError."""
    needed = tuple(attack.needs)
    for role in ROLES:
        optional = role == "benign" and hasattr(attack, "poison_ratio")
        if getattr(data, role) is not None and role not in needed and not optional:
            raise UsageError(f"--{role} is not used by --attack {name}")
    wanted = [role for role in ROLES if role in needed or getattr(data, role) is not None]
    if "benign" in needed and data.benign is None:
        raise UsageError(f"--attack {name} needs --benign, harmless rows of the data that a user would train on")
    found = {}
    for role in wanted:
        shipped = getattr(attack, "SHIPPED", role)
        found[role], note = rows_of(getattr(data, role), data.limit, shipped if role == "harmful" else role)
        notes.append(note)
    return found


def _bench(job: Job) -> Bench:
    """The model in memory, an adapter merged into its base, and what the attack needs besides."""
    from weightguard.attacks.bench import Bench
    from weightguard.statistics.loading import load_adapted, load_model, load_tokenizer

    subject, running = job.subject, job.running
    model = load_model(subject.model, dtype="float32", device=running.device)
    if subject.adapter is not None:
        model = load_adapted(model, subject.adapter).merge_and_unload()
    model.requires_grad_(False)
    check_weights(subject)
    shapes = {name: subject.model.info(name).shape for name in subject.named}
    return Bench(
        model, load_tokenizer(*subject.directories), subject.model.config, subject.named, shapes, job.sets,
        base_name(subject), running.max_length, lambda *asked: _train(job, *asked), job.progress, job.notes,
    )  # fmt: skip


def _train(job: Job, model: Any, rows: Sequence[Any], recipe: Any, loss: Any) -> None:
    import torch

    from weightguard.training.loop import train
    from weightguard.training.state import StateFile

    every = job.output.save_every or max(1, recipe.step_count(len(rows)) // SAVES)
    job.state = StateFile(job.output.state, plain(_fingerprint(job)), every)
    autocast = torch.bfloat16 if job.running.dtype == "bfloat16" else None
    job.losses = train(
        model, job.subject.model.config, rows, recipe, with_loss(job.progress), loss=loss, autocast=autocast,
        state=job.state, resume=job.output.resume,
    )  # fmt: skip


def _fingerprint(job: Job) -> dict[str, Any]:
    """What must be the same for an unfinished run to go on."""
    from weightguard.api.collect import header_digest

    running = {"dtype": job.running.dtype, "threads": job.running.thread_count, "max_length": job.running.max_length}
    return {
        "attack": job.name,
        **settings(job.attack),
        **running,
        "data": _records(job),
        "model": header_digest(job.subject),
    }


def _records(job: Job) -> dict[str, Any]:
    return {role: {"source": d.source, "sha256": d.sha256, "rows": len(d.rows)} for role, d in job.sets.items()}


def _publish(job: Job, bench: Bench, adapter: bool) -> Manifest:
    from weightguard.api.trained import Publication, check_writable, publish_full, publish_lora
    from weightguard.rewrite import Options, identity

    subject = job.subject
    options = Options(force=job.output.force, verify_write=job.output.verify_write)
    inputs = {"model": identity(subject.model)}
    if subject.adapter is not None:
        inputs["adapter"] = identity(subject.adapter, whole=True)
    said = ("attack", getattr(job.attack, "PAPER", "none"), {"attack": job.name, **settings(job.attack)})
    training = {"steps": len(job.losses), "dtype": job.running.dtype} if job.losses else {}
    facts = {"command": _command(job), "notes": job.notes, "data": _records(job), "training": training, **bench.facts}
    to = Publication(subject, job.output.out, said, inputs, facts, options, job.progress)
    if adapter:
        return publish_lora(to, bench.model, residual=False)
    _open_merged(job, bench)
    if not any(parameter.requires_grad for parameter in bench.model.parameters()):
        raise DataError(
            f"--attack {job.name}: changed nothing; no parameter of the model requires a gradient after run()"
        )
    check_writable(subject, bench.model)
    return publish_full(to, bench.model)


def _open_merged(job: Job, bench: Bench) -> None:
    """What an adapter changed is not what the base's files hold, so it is written as well."""
    for name in job.subject.factor_pairs() if job.subject.adapter is not None else ():
        bench.linear(name).parameter.requires_grad_(True)


def _command(job: Job) -> str:
    """The line that does this again, with placeholders for paths."""
    model = "MODEL" if job.subject.adapter is None else "MODEL+ADAPTER"
    words = ["weightguard", "attack", model, "--attack", job.name]
    words += [w for role, data in job.sets.items() if ":" not in data.source for w in (f"--{role}", role.upper())]
    for key, value in settings(job.attack).items():
        words += [f"--{key.replace('_', '-')}", str(value)]
    return shlex.join([*words, *job.running.words, "-o", "OUT"])
