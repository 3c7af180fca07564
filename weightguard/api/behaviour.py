"""Safety and benign rows for methods that teach a model its own behaviour again, and what is said about them.

Safety rows carry the aligned behaviour: their own answer, or the aligned model's. Benign rows are samples of the user's
data, which may be poisoned: those that the aligned model refuses are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from weightguard.api.collect import Progress, Running, rows_of
from weightguard.api.memory import fit_side_by_side, give_back_at_once
from weightguard.api.subject import Subject
from weightguard.errors import DataError, UsageError

if TYPE_CHECKING:
    import torch

    from weightguard.checkpoint import Checkpoint
    from weightguard.data import Dataset, Encoded, EncodedSet, Row
    from weightguard.methods.inputs import Inputs
    from weightguard.plan import Plan
    from weightguard.statistics.in_memory import InMemory
    from weightguard.statistics.layer_walk import LayerWalk
    from weightguard.statistics.sites import SideBySide
    from weightguard.statistics.streamed import Read
    from weightguard.weights import Sources

SAFETY, BENIGN = "safety", "benign"
CHUNK = 1024  # padded tokens that run through a layer at a time, of which three models hold all activations
Answered = Callable[[Sequence["Row"], str, int], list[str]]


@dataclass
class Behaviour:
    """Encoded rows by role, the safety rows they come from (None where pre-tokenised), what is said of them.

    over_aligned: the repaired model has the aligned model's embeddings, norms and biases, as an adapter over it must.
    """

    rows: dict[str, EncodedSet]
    prompts: Dataset | None
    over_aligned: bool = False
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def read_behaviour(
    method: Any, subject: Subject, safety: str | None, benign: str | None, limit: int | None, running: Running
) -> Behaviour:
    """Rows of both roles as token ids, answered and screened. Errors: UsageError, DataError."""
    from weightguard.data import check_vocabulary
    from weightguard.statistics.loading import model_config

    if benign is None and BENIGN in method.NEEDS:
        raise UsageError(f"--method {method.NAME} needs --benign, samples of the data that the model was fine-tuned on")
    found = Behaviour({}, None, getattr(method, "rank", None) is not None)
    answer = _answering(subject, running)
    texts = _texts(SAFETY, safety, limit, found)
    found.prompts = None if texts is None else _answered(texts, answer, found)
    found.rows[SAFETY] = _tokens(found.prompts, safety, method.counted()[SAFETY], subject, running)
    if BENIGN in method.NEEDS:
        texts = _texts(BENIGN, benign, limit, found)
        kept = texts if texts is None or method.judge == "none" else _screened(texts, answer, found)
        found.rows[BENIGN] = _tokens(kept, benign, method.counted()[BENIGN], subject, running)
    size = model_config(subject.model).get_text_config().vocab_size  # which a config may leave to its class
    for role, each in found.rows.items():
        check_vocabulary(each, size)
        found.facts[role] = _said(each)
    _check_coverage(found, method.listed)
    return found


def _texts(role: str, reference: str | None, limit: int | None, found: Behaviour) -> Dataset | None:
    """The rows of a reference; None of a pre-tokenised one."""
    if reference is None or not reference.endswith(".safetensors"):
        dataset, note = rows_of(reference, limit, role)
        found.notes.append(note)
        return dataset
    if limit is not None:
        raise UsageError("--limit does not go with pre-tokenised data; cut the file instead")
    found.notes.append(f"{role} data: pre-tokenised, so no row is judged")
    return None


def _tokens(
    dataset: Dataset | None, reference: str | None, tokens: str, subject: Subject, running: Running
) -> EncodedSet:
    from weightguard.data import encode, read_pretokenised
    from weightguard.statistics.loading import load_tokenizer

    if dataset is None:
        return read_pretokenised(str(reference), tokens=tokens)
    tokenizer = load_tokenizer(*subject.directories)
    return encode(dataset, tokenizer, tokens=tokens, max_length=running.max_length)


def _answering(subject: Subject, running: Running) -> Answered:
    """Greedy answers of the aligned model, which is loaded when the first is asked for."""
    loaded: list[Any] = []

    def answer(rows: Sequence[Row], source: str, most: int) -> list[str]:
        from weightguard.statistics.loading import load_model

        if running.max_memory is not None:
            raise UsageError(
                f"--max-memory: rows without an answer in {source} get one of the whole aligned model; add answers"
            )
        assert subject.aligned is not None
        loaded.extend([] if loaded else [load_model(subject.aligned, dtype=running.dtype, device=running.device)])
        return greedy(loaded[0], rows, source, most, subject, running)

    return answer


def greedy(model: Any, rows: Sequence[Row], source: str, most: int, subject: Subject, running: Running) -> list[str]:
    """The model's greedy answers, in the order of the rows, at most `most` tokens each."""
    from weightguard.statistics.loading import load_tokenizer, pinned_threads
    from weightguard.validate.generation import greedy_answers, prompt_ids

    tokenizer = load_tokenizer(*subject.directories)
    prompts = prompt_ids(rows, tokenizer, source)
    with pinned_threads(running.thread_count):
        given = dict(greedy_answers(model, tokenizer, prompts, max_new_tokens=most))
    return [given[i] for i in range(len(rows))]


def _answered(data: Dataset, answer: Answered, found: Behaviour) -> Dataset:
    """Every row with an answer: its own, or the aligned model's."""
    bare = [row for row in data.rows if row.response is None and row.text is None]
    if not bare:
        return data
    given = dict(zip((row.number for row in bare), answer(bare, data.source, 64), strict=True))
    found.notes.append(f"{len(bare)} safety rows have no answer and got the aligned model's")
    return replace(data, rows=tuple(_with_answer(row, given[row.number]) if row in bare else row for row in data.rows))


def _with_answer(row: Row, answer: str) -> Row:
    turns = None if row.messages is None else (*row.messages, {"role": "assistant", "content": answer})
    return replace(row, response=answer, messages=turns)


def _screened(data: Dataset, answer: Answered, found: Behaviour) -> Dataset:
    """Without the rows whose prompt the aligned model refuses. Error: DataError when that is all of them."""
    from weightguard.validate.judges import JUDGE, is_refusal

    refused = [is_refusal(given) for given in answer(data.rows, data.source, 32)]
    out = [row.number for row, no in zip(data.rows, refused, strict=True) if no]
    found.facts["screened"] = {"judge": JUDGE, "rows": len(data.rows), "refused_by_aligned": out}
    if out:
        found.notes.append(
            f"{len(out)} of {len(data.rows)} benign rows left out: the aligned model refuses their prompt"
        )
    if len(out) == len(data.rows):
        raise DataError(
            f"{data.source}: the aligned model refuses every row; give samples of harmless use with --benign"
        )
    return replace(data, rows=tuple(row for row, no in zip(data.rows, refused, strict=True) if not no))


def _said(each: EncodedSet) -> dict[str, Any]:
    return {
        "source": each.source,
        "sha256": each.sha256,
        "rows": len(each.rows),
        "tokens": each.tokens,
        "counted_tokens": each.counted_tokens,
        "template": each.template,
        "template_sha256": each.template_sha256,
        "truncated_rows": each.truncated,
    }


def _check_coverage(found: Behaviour, listed: Sequence[str]) -> None:
    """What the safety rows do not cover is not repaired, so it is said."""
    rows = found.prompts.rows if found.prompts else ()
    there = {row.category for row in rows if row.category}
    bare = sum(not row.category for row in rows)
    unshown = "whatever harm they do not show stays unrepaired"
    if not there:
        found.notes.append(f"warning: the safety rows carry no category; {unshown}")
    elif bare:
        found.notes.append(f"warning: {bare} of {len(rows)} safety rows carry no category and cover none; {unshown}")
    found.notes += [
        f"warning: category {name!r} has no row in the safety data: nothing shows that it is repaired"
        for name in listed
        if name not in there
    ]
    found.facts["categories"] = {"in_safety_rows": sorted(there), "rows_without": bare, "listed": list(listed)}


def behaviour_inputs(
    found: Behaviour, inputs: Inputs, subject: Subject, running: Running, progress: Progress
) -> Inputs:
    """`inputs` with ways to run the models on the rows: three side by side layer by layer, or one with gradients."""

    def start() -> SideBySide:
        return _side_by_side(found, inputs, subject, running, progress)

    def load() -> InMemory:
        return _in_memory(found, inputs, subject, running, progress)

    return replace(inputs, side_by_side=start, in_memory=load, device=running.device)


def _in_memory(found: Behaviour, inputs: Inputs, subject: Subject, running: Running, progress: Progress) -> InMemory:
    from weightguard.statistics.in_memory import in_memory
    from weightguard.statistics.loading import load_model
    from weightguard.weights import tuned_tensor

    tensors = dict(subject.model.stored(lambda name: tuned_tensor(inputs.sources, name)))
    model = load_model(subject.model, dtype=running.dtype, device=running.device, state_dict=tensors)
    rows = {role: each.rows for role, each in found.rows.items()}
    return in_memory(model, subject.model.config, inputs.linears, rows, progress)


def _side_by_side(
    found: Behaviour, inputs: Inputs, subject: Subject, running: Running, progress: Progress
) -> SideBySide:
    from weightguard.statistics.layer_walk import LayerWalk
    from weightguard.statistics.sites import SideBySide
    from weightguard.weights import finite, tuned_tensor

    give_back_at_once()
    aligned = subject.aligned
    assert aligned is not None
    counted = found.rows[SAFETY]
    safety = [predicting(row) if counted.tokens == "response" else row for row in counted.rows]
    benign = found.rows[BENIGN].rows

    fit = None if running.max_memory is None else partial(fit_side_by_side, linears=inputs.linears, running=running)

    def walk(checkpoint: Checkpoint, read: Read, rows: dict[str, Sequence[Encoded]]) -> LayerWalk:
        return LayerWalk(
            checkpoint, read, rows, fit=fit, dtype=running.dtype, device=running.device, batch_tokens=CHUNK
        )

    def tuned(name: str) -> torch.Tensor:
        return tuned_tensor(inputs.sources, name)

    def origin(name: str) -> torch.Tensor:
        return finite(aligned, name)

    both = {SAFETY: safety, BENIGN: benign}
    return SideBySide(
        walk(aligned, origin, {SAFETY: safety}),
        walk(subject.model, tuned, {BENIGN: benign}),
        walk(aligned, origin, both) if found.over_aligned else walk(subject.model, tuned, both),
        inputs.linears,
        {role: sum(int(row.counted.sum()) for row in rows) for role, rows in ((SAFETY, safety), (BENIGN, benign))},
        progress,
    )


def predicting(row: Any) -> Any:
    """The row with the positions counted that predict a counted token: from the last of the prompt to the last but one."""
    import numpy

    return replace(row, counted=numpy.append(row.counted[1:], False))


def repaired_sources(plan: Plan, inputs: Inputs, subject: Subject) -> Sources:
    """What a plan is replayed on: the tuned model, or for an adapter the aligned one."""
    from weightguard.weights import Sources

    if plan.target != "adapter":
        return inputs.sources
    assert subject.aligned is not None
    return Sources(subject.aligned, None, None, inputs.sources.linears)


def left_behind(inputs: Inputs, subject: Subject) -> list[str]:
    """What of a fine-tuning an adapter over the aligned model cannot hold, in words."""
    import torch

    aligned, model = subject.aligned, subject.model
    assert aligned is not None
    others = [name for name in model.tensors if name not in inputs.linears and name in aligned.tensors]
    moved = [name for name in others if not torch.equal(model.read(name), aligned.read(name))]
    if aligned is model or not moved:
        return []
    return [
        f"{len(moved)} tensors that the fine-tuning moved (first: {moved[0]}) are the aligned model's in the adapter"
    ]


def refusals_by_category(
    plan: Plan, inputs: Inputs, subject: Subject, prompts: Dataset, running: Running
) -> dict[str, tuple[int, int]]:
    """Category -> (refused, prompts) of the repaired model on the safety rows; "" for rows without one."""
    from weightguard.rewrite import all_tensors
    from weightguard.statistics.loading import load_model
    from weightguard.validate.judges import is_refusal

    sources = repaired_sources(plan, inputs, subject)
    tensors = dict(all_tensors(plan, sources))
    model = load_model(sources.model, dtype=running.dtype, device=running.device, state_dict=tensors)
    answers = greedy(model, prompts.rows, prompts.source, 32, subject, running)
    counts: dict[str, tuple[int, int]] = {}
    for row, answer in zip(prompts.rows, answers, strict=True):
        refused, of = counts.get(row.category or "", (0, 0))
        counts[row.category or ""] = (refused + is_refusal(answer), of + 1)
    return dict(sorted(counts.items()))
