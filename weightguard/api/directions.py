"""What SaLoRA measures before it trains: Gram matrices on safety and on task data, a few layers at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from weightguard.api.answers import with_answers
from weightguard.api.collect import check_disjoint, encoded, rows_of

if TYPE_CHECKING:
    from weightguard.api.finetuning import Job
    from weightguard.checkpoint import Linear
    from weightguard.data import EncodedSet

Progress = Callable[[str, int, int], None]
BUDGET = 4 << 30  # bytes of Gram matrices held at once; more layers than fit are another forward pass


def material(job: Job, model: Any, data: EncodedSet, progress: Progress) -> tuple[EncodedSet, EncodedSet]:
    """(safety rows, task rows) as token ids; what they are goes into the job's records."""
    from weightguard.data import check_vocabulary
    from weightguard.statistics.loading import vocabulary_rows

    found = {"safety": _safety(job, model, progress), "task": _task(job, data)}
    check_disjoint(found["safety"], found["task"], "--safety and the task's data")
    for role, each in found.items():
        check_vocabulary(each, vocabulary_rows(model))
        job.records[role] = {"source": each.source, "sha256": each.sha256, "rows": len(each.rows),
                             "counted_tokens": each.counted_tokens}  # fmt: skip
    return found["safety"], found["task"]


def measured(job: Job, model: Any, safety: EncodedSet, task: EncodedSet, progress: Progress) -> Any:
    """The job's guard with a start for every adapted tensor."""
    import dataclasses

    from weightguard.statistics.grams import collect_grams

    assert job.lora is not None
    config, named = job.subject.model.config, job.subject.named
    linears = {name: named[name] for name in job.tensors}
    starts: dict[str, Any] = {}
    for group in _groups(linears, {name: job.subject.model.info(name).shape for name in job.tensors}):
        of_safety = collect_grams(model, config, group, safety.rows, lambda i, n: progress("safety", i, n))
        of_task = collect_grams(model, config, group, task.rows, lambda i, n: progress("task", i, n))
        starts |= job.guard.measured(model, of_safety, of_task, job.lora.r).starts
        progress("directions", len(starts), len(linears))
    return dataclasses.replace(job.guard, starts=starts)


def _safety(job: Job, model: Any, progress: Progress) -> EncodedSet:
    """Safety rows on their answers; a prompt without one gets the model's own."""
    from weightguard.data import encode
    from weightguard.statistics.loading import load_tokenizer

    reference, limit = job.sources.safety, job.sources.limit
    if reference is not None and reference.endswith(".safetensors"):
        found, note = encoded(job.subject, reference, "safety", "response", limit, job.running)
        job.notes.append(note)
        return found
    dataset, note = rows_of(reference, limit, "safety")
    tokenizer = load_tokenizer(*job.subject.directories)
    answered = with_answers(dataset, model, tokenizer, lambda i, n: progress("answer", i, n))
    job.notes.extend([note, *answered.notes[len(dataset.notes) :]])
    return encode(answered, tokenizer, tokens="response", max_length=job.running.max_length)


def _task(job: Job, data: EncodedSet) -> EncodedSet:
    if job.sources.utility is None:
        job.notes.append("task directions: those of --data, since no --utility was given")
        return data
    found, note = encoded(job.subject, job.sources.utility, "utility", "response", job.sources.limit, job.running)
    job.notes.append(note)
    return found


def _groups(linears: Mapping[str, Linear], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[dict[str, Linear]]:
    """Whole layers, as many at a time as fit the budget."""
    layers: dict[int, dict[str, Linear]] = {}
    for name, linear in linears.items():
        layers.setdefault(linear.layer, {})[name] = linear
    group: dict[str, Linear] = {}
    held = 0
    for layer in layers.values():
        sites = {linear.site: shapes[name][0 if linear.transposed else 1] for name, linear in layer.items()}
        size = sum(2 * 8 * width * width for width in sites.values())
        if group and held + size > BUDGET:
            yield group
            group, held = {}, 0
        group, held = {**group, **layer}, held + size
    if group:
        yield group
