"""`finetune`: rows in, a trained checkpoint or adapter out, with or without a guard."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightguard.api.collect import Running, encoded, facts_of
from weightguard.api.needs import data_notes
from weightguard.api.subject import Subject, open_subject
from weightguard.checkpoint.writer import beside
from weightguard.errors import OutputError, UsageError
from weightguard.guards import guard_class
from weightguard.options import configured, settings

if TYPE_CHECKING:
    from weightguard.data import EncodedSet
    from weightguard.rewrite import Manifest
    from weightguard.training.lora import Lora
    from weightguard.training.recipe import Recipe
    from weightguard.training.state import StateFile

Progress = Callable[[str, int, int], None]
LORA_RATE, FULL_RATE = 2e-4, 2e-5
SAVES = 10  # states saved on the way, where --save-every does not say


@dataclass(frozen=True)
class Sources:
    """Data references by role, the neurons file, and how many rows of each data set are read."""

    data: str
    safety: str | None = None
    utility: str | None = None
    neurons: str | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Output:
    """Where the result goes, and how often the run is saved on the way there."""

    out: Path
    force: bool = False
    verify_write: bool = True
    resume: bool = False
    save_every: int | None = None

    @property
    def state(self) -> Path:
        """The state of an unfinished run, beside the output."""
        return beside(self.out, ".weightguard-training")


@dataclass(frozen=True)
class Finetuned:
    """`losses`: of every step. `starts`: per tensor what SaLoRA measured (see `guards.directions`)."""

    manifest: Manifest
    out: Path
    notes: tuple[str, ...]
    command: str
    trained: int
    losses: tuple[float, ...]
    starts: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Job:
    """Everything that was asked for, checked as far as it can be without a model.

    notes: said to the user as they come. records: what a guard measured on, by role, for the manifest.
    """

    subject: Subject
    guard: Any
    lora: Lora | None
    tensors: tuple[str, ...]
    recipe: Recipe
    sources: Sources
    output: Output
    running: Running
    notes: list[str] = field(default_factory=list)
    records: dict[str, Any] = field(default_factory=dict)

    @property
    def guard_name(self) -> str | None:
        return None if self.guard is None else self.guard.NAME


def run_finetune(
    reference: str,
    guard: str | None,
    options: Mapping[str, Any],
    lora: str | None,
    recipe: Callable[[float], Recipe],
    sources: Sources,
    output: Output,
    running: Running,
    offline: bool,
    progress: Progress,
) -> Finetuned:
    """The whole run. Nothing is trained before everything that can be checked was checked."""
    job = _job(reference, guard, options, lora, recipe, sources, output, running, offline)
    found, note = encoded(job.subject, sources.data, "training", "response", sources.limit, running)
    job.notes.extend([note, *data_notes(found)])
    model, losses, finished, state = _trained(job, found, progress)
    facts = _facts(job, found, losses, finished)
    manifest = _publish(job, model, finished, facts, progress)
    state.discard()
    starts = {n: dict(start.facts) for n, start in getattr(finished, "starts", {}).items()}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) // getattr(finished, "halves", 1)
    return Finetuned(manifest, output.out, tuple(manifest.data["notes"]), facts["command"], trained, losses, starts)


def _job(
    reference: str,
    guard: str | None,
    options: Mapping[str, Any],
    lora: str | None,
    recipe: Callable[[float], Recipe],
    sources: Sources,
    output: Output,
    running: Running,
    offline: bool,
) -> Job:
    from weightguard.rewrite import check_apart, check_companions, check_space, check_target
    from weightguard.training.lora import Lora, parse_lora, targeted

    asked = parse_lora(lora) if lora is not None else Lora() if guard == "salora" else None
    if asked is not None and asked.alpha is None and guard == "salora":
        asked = dataclasses.replace(asked, alpha=asked.r)  # as published: s = 1
    settled = recipe(FULL_RATE if asked is None else LORA_RATE)
    settled.check()
    check_training(running, output)
    check_target(output.out, output.force)
    subject = open_subject(reference, offline=offline, search=False)
    if subject.adapter is not None:
        raise UsageError(f"{reference}: fine-tuning starts from a full model; merge the adapter into its base first")
    check_apart(output.out, subject.inputs)
    check_companions(subject.model)
    check_space(output.out.parent, training_space(subject) if asked is None else 0)
    shapes = {name: subject.model.info(name).shape for name in subject.named}
    # peft puts factors on modules, and the experts of a layer are packed in one that is no linear.
    adaptable = [name for name, linear in subject.named.items() if linear.expert is None]
    tensors = () if asked is None else tuple(targeted(asked, adaptable, shapes))
    chosen = _guard(guard, options, sources, subject)
    job = Job(subject, chosen, asked, tensors, settled, sources, output, running)
    if asked is not None and lora is None:
        job.notes.append(f"--guard salora trains an adapter; no --lora was given, so r={asked.r}")
    return job


def training_space(subject: Subject) -> int:
    """Bytes of the output, and of a state with the weights and two moments in float32."""
    return sum(info.nbytes + 12 * info.numel for info in subject.model.tensors.values())


def check_training(running: Running, output: Output) -> None:
    """Errors: UsageError, OutputError (an unfinished run lies there)."""
    if running.dtype == "float16":
        raise UsageError("--dtype float16: needs loss scaling, which this loop does not have; give bfloat16 or float32")
    if output.save_every is not None and output.save_every < 1:
        raise UsageError(f"--save-every {output.save_every}: must be at least 1")
    if output.state.exists() and not (output.resume or output.force):
        raise OutputError(f"{output.state}: an unfinished run; go on with --resume, or begin anew with --force")


def _guard(name: str | None, options: Mapping[str, Any], sources: Sources, subject: Subject) -> Any:
    """The guard with its options, and its neurons where it needs them. Errors: UsageError, MismatchError, InputError."""
    if name is None:
        given = [*options, *[key for key in ("neurons", "safety", "utility") if getattr(sources, key) is not None]]
        if given:
            raise UsageError(f"--{given[0].replace('_', '-')} is for a guard; give --guard")
        return None
    cls = guard_class(name)
    for role, need in (("neurons", "neurons"), ("safety", "safety"), ("utility", "safety")):
        if getattr(sources, role) is not None and need not in cls.NEEDS:
            raise UsageError(f"--{role} is not used by --guard {name}")
    if "neurons" not in cls.NEEDS:
        return _salora(cls, options)
    if sources.neurons is None:
        raise UsageError(f"--guard {name} needs --neurons; make them with weightguard neurons")
    from weightguard.parts import Neurons

    neurons = Neurons.load(Path(sources.neurons))
    if not neurons.parts:
        raise UsageError(f"--neurons {sources.neurons}: marks no tensor, so there is nothing to guard")
    neurons.check_fits(subject.model)
    return configured(cls, f"--guard {name}", {**options, "neurons": neurons})


def _salora(cls: Any, options: Mapping[str, Any]) -> Any:
    made = configured(cls, "--guard salora", options)
    if (made.start, made.export) == ("zero", "residual"):
        raise UsageError("--export residual rewrites the base by what --start task begins with; leave one of them out")
    return made


def _trained(job: Job, found: EncodedSet, progress: Progress) -> tuple[Any, tuple[float, ...], Any, StateFile]:
    """(the trained model, its losses, the guard it was trained under, the state file that is now out of date)."""
    import torch

    from weightguard.data import check_vocabulary
    from weightguard.statistics.loading import load_model, pinned_threads, vocabulary_rows
    from weightguard.training.loop import train

    autocast = torch.bfloat16 if job.running.dtype == "bfloat16" else None
    with pinned_threads(job.running.thread_count):
        dtype = "float32" if autocast is not None else job.running.dtype
        model = load_model(job.subject.model, dtype=dtype, device=job.running.device)
        check_vocabulary(found, vocabulary_rows(model))
        model, guard, state = _prepared(job, model, found, progress)
        losses = train(
            model, job.subject.model.config, found.rows, job.recipe, with_loss(progress),
            guard=guard, autocast=autocast, state=state, resume=job.output.resume,
        )  # fmt: skip
    return model, losses, guard, state


def with_loss(progress: Progress) -> Callable[[int, int, float], None]:
    """The progress of a training run, which says the loss."""
    return lambda done, total, loss: progress(f"train (loss {loss:.4f})", done, total)


def _state(job: Job, found: EncodedSet) -> StateFile:
    from weightguard.training.state import StateFile

    steps = job.recipe.step_count(len(found.rows))
    every = job.output.save_every or max(1, steps // SAVES)
    facts = {k: v for k, v in facts_of(found, job.subject, job.running).items() if k != "total_tokens"}
    neurons = getattr(job.guard, "neurons", None)
    said = {**facts, "recipe": dataclasses.asdict(job.recipe), **_choices(job), **job.records}
    said["neurons"] = None if neurons is None else neurons.digest()
    return StateFile(job.output.state, plain(said), every)


def plain(said: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    import json

    return json.loads(json.dumps(said, default=str))


def _choices(job: Job) -> dict[str, Any]:
    """Guard and LoRA settings by flag name."""
    held = ("neurons", "starts")
    options = {} if job.guard is None else {k: v for k, v in settings(job.guard).items() if k not in held}
    lora = {} if job.lora is None else {"lora": ",".join(f"{k}={_word(v)}" for k, v in job.lora.settings().items())}
    return {**({} if job.guard is None else {"guard": job.guard_name}), **options, **lora}


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _prepared(job: Job, model: Any, found: EncodedSet, progress: Progress) -> tuple[Any, Any, StateFile]:
    """(the model with what is to be trained, the guard with what it had to measure, the state file of the run)."""
    from weightguard.api.trained import check_writable
    from weightguard.training.lora import adapted

    if job.guard_name == "salora":
        return _with_directions(job, model, found, progress)
    if job.lora is None:
        check_writable(job.subject, model)
    else:
        model = adapted(model, job.lora, job.tensors, base_name(job.subject), job.recipe.seed)
    return model, job.guard, _state(job, found)


def _with_directions(job: Job, model: Any, found: EncodedSet, progress: Progress) -> tuple[Any, Any, StateFile]:
    """The same for SaLoRA; a run that goes on takes the directions it was begun with."""
    from weightguard.api.directions import material, measured
    from weightguard.training.lora import adapted

    assert job.lora is not None
    safety, task = material(job, model, found, progress)
    state = _state(job, found)
    begun = state.check().extras if job.output.resume else None
    guard = measured(job, model, safety, task, progress) if begun is None else job.guard.with_tensors(begun)
    job.notes.extend(_start_notes(guard))
    wanted = job.lora.doubled() if guard.halves == 2 else job.lora
    model = adapted(model, wanted, job.tensors, base_name(job.subject), job.recipe.seed)
    guard.initialise(model)
    return model, guard, dataclasses.replace(state, extras=guard.tensors())


def _start_notes(guard: Any) -> list[str]:
    """What to know of the directions before a long run."""
    fewest, name = min((start.facts["spanned"], name) for name, start in guard.starts.items())
    short = sum(start.facts["spanned"] < guard.safety_rank for start in guard.starts.values())
    said = (
        f"the safety data reach fewer than {guard.safety_rank} output directions of {short} modules (fewest: {fewest:.0f}, of "
        f"{name}); what --safety-rank keeps beyond them is arbitrary"
    )
    return ([said] if short else []) + _overlap_notes(guard)


def _overlap_notes(guard: Any) -> list[str]:
    kept = sorted(start.facts["initialisation_kept"] for start in guard.starts.values())
    middle = kept[len(kept) // 2]
    if guard.start == "zero" or middle >= 0.5:
        return []
    return [
        f"task and safety use much the same output directions: C leaves {middle:.0%} of the task start in the median module, "
        f"and from there the same --lr moves further than plain LoRA does; --start zero begins without"
    ]


def base_name(subject: Subject) -> str:
    """What adapter_config.json names: the hub id, or the absolute place of the base."""
    return subject.model.label.partition("@")[0] if subject.model.revision else str(subject.model.directory.absolute())


def _publish(job: Job, model: Any, guard: Any, facts: dict[str, Any], progress: Progress) -> Manifest:
    from weightguard.api.trained import Publication, publish_full, publish_lora
    from weightguard.rewrite import Options, identity

    options = Options(force=job.output.force, verify_write=job.output.verify_write)
    paper = "none" if job.guard is None else job.guard.PAPER
    said = ("finetune", paper, {**_choices(job), **_recipe_options(job)})
    inputs = {"model": identity(job.subject.model)}
    to = Publication(job.subject, job.output.out, said, inputs, facts, options, progress)
    if job.lora is None:
        return publish_full(to, model)
    return publish_lora(to, model, residual=getattr(job.guard, "export", None) == "residual")


def _recipe_options(job: Job) -> dict[str, Any]:
    """The settings of the recipe by flag name."""
    recipe = job.recipe
    length = {"steps": recipe.steps} if recipe.steps is not None else {"epochs": recipe.epochs}
    return {**length, "lr": recipe.learning_rate, "batch_size": recipe.batch_size, "schedule": recipe.schedule,
            "weight_decay": recipe.weight_decay, "seed": recipe.seed}  # fmt: skip


def _facts(job: Job, found: EncodedSet, losses: tuple[float, ...], guard: Any) -> dict[str, Any]:
    """What the manifest records besides; no paths."""
    said = {k: v for k, v in facts_of(found, job.subject, job.running).items() if k != "threads"}
    facts: dict[str, Any] = {"command": _command(job), "notes": job.notes, "training": {**said, "steps": len(losses)}}
    neurons = getattr(guard, "neurons", None)
    if neurons is not None:
        facts["neurons"] = {"sha256": neurons.digest(), "kind": neurons.kind, "tensors": len(neurons.parts)}
    if getattr(guard, "starts", None):
        facts["salora"] = {
            **job.records,
            "modules": {name: dict(start.facts) for name, start in sorted(guard.starts.items())},
        }
    return facts


def _command(job: Job) -> str:
    """The line that does this again, with placeholders for paths."""
    words = ["weightguard", "finetune", "MODEL", "--data", "DATA"]
    roles = ("neurons", "safety", "utility")
    words += [w for role in roles if getattr(job.sources, role) is not None for w in (f"--{role}", role.upper())]
    for key, value in {**_choices(job), **_recipe_options(job)}.items():
        words += [f"--{key.replace('_', '-')}", str(value)]
    words += ["--limit", str(job.sources.limit)] if job.sources.limit else []
    words += ["--dtype", job.running.dtype] if job.running.dtype != "float32" else []
    return shlex.join([*words, "-o", "OUT"])
