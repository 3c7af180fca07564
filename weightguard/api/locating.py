"""`neurons`: from a model and the data of each role to a file that says where safety lies in it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightguard.api.answers import with_answers
from weightguard.api.collect import Progress, Running, check_disjoint, check_weights, facts_of, rows_of
from weightguard.api.needs import data_notes
from weightguard.api.reporting import role_order
from weightguard.api.subject import Subject, open_subject
from weightguard.checkpoint import in_scope
from weightguard.checkpoint.writer import check_free, write_file
from weightguard.errors import DataError, UnsupportedError, UsageError
from weightguard.locate import kind_class
from weightguard.options import configured, settings
from weightguard.parts import Neurons, Part, tensor_digest

if TYPE_CHECKING:
    from weightguard.data import EncodedSet
    from weightguard.locate.material import Found, Material

NO_DATA = "--{role} is missing; --kind {kind} needs it: {what}"
MEANT = {"safety": "prompts with the aligned behaviour", "utility": "harmless rows with their answers"}


@dataclass(frozen=True)
class Sets:
    """Data references by role, and how much of each is read. `like`: neurons that a random control imitates."""

    safety: str | None = None
    utility: str | None = None
    like: str | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Located:
    """What was found, the notes about the data, the line that does it again; `linears`: tensor -> (role, shape) in scope."""

    neurons: Neurons
    notes: tuple[str, ...]
    command: str
    linears: Mapping[str, tuple[str, tuple[int, int]]]
    out: Path | None

    @property
    def form(self) -> str:
        """The form of the parts: entries, rows (or columns), rank or rate."""
        return next(iter(self.neurons.parts.values())).form

    def summary(self) -> dict[str, dict[str, Any]]:
        """By role, then "all": tensors and entries in scope, what is marked of them, and the share that is.

        marked: entries of a mask; directions of a rank, out of min(out, in); tensors that learn slowly.
        """
        roles = sorted({role for role, _ in self.linears.values()}, key=role_order)
        names = {
            each: [n for n, (role, _) in self.linears.items() if each in (role, "all")] for each in (*roles, "all")
        }
        return {each: self._counted(of_role) for each, of_role in names.items()}

    def _counted(self, names: list[str]) -> dict[str, Any]:
        entries = sum(self.linears[n][1][0] * self.linears[n][1][1] for n in names)
        marked, whole = 0, 0
        for name in names:
            taken, of = _marked(self.neurons.parts.get(name), self.linears[name][1], self.form)
            marked, whole = marked + taken, whole + of
        return {"tensors": len(names), "entries": entries, "marked": marked, "share": marked / whole}


def _marked(part: Part | None, shape: tuple[int, int], form: str) -> tuple[int, int]:
    """(what is marked of a tensor, what could be), counted as the form does."""
    if form == "rank":
        return (0 if part is None or part.left is None else part.left.shape[1]), min(shape)
    if form == "rate":
        return int(part is not None and part.rate != 1), 1
    return (0 if part is None else part.selected), shape[0] * shape[1]


def run_neurons(
    reference: str,
    kind_name: str,
    options: Mapping[str, Any],
    sets: Sets,
    out: Path | None,
    force: bool,
    running: Running,
    offline: bool,
    progress: Progress,
) -> Located:
    """The whole search. Nothing is written before everything was found."""
    kind = configured(kind_class(kind_name), f"--kind {kind_name}", options).settled()
    _check_sets(kind, sets, options)
    subject = _opened(reference, out, force, offline)
    like = None if sets.like is None else Neurons.load(Path(sets.like))
    linears = in_scope(subject.named, kind.scope)
    notes: list[str] = []
    with _at_work(kind, running):
        material = _material(kind, subject, linears, sets, running, notes, progress, like)
        found = _found(kind, material, subject)
    neurons = _neurons(kind, found, material, subject, running, like)
    if out is not None:
        write_file(out, neurons.to_bytes(), force=force)
    command = _command(kind_name, neurons, sets)
    known = {name: (linear.role, material.shape(name)) for name, linear in linears.items()}
    return Located(neurons, (*notes, *found.notes), command, known, out)


def _found(kind: Any, material: Material, subject: Subject) -> Found:
    """What the kind finds; where it fails on what the model made of the data, weights that are NaN are named instead."""
    try:
        return kind.find(material)
    except DataError:
        check_weights(subject)
        raise


def _check_sets(kind: Any, sets: Sets, options: Mapping[str, Any]) -> None:
    unused = [role for role in ("safety", "utility") if getattr(sets, role) is not None and role not in kind.needs]
    if unused:
        why = "looks at no data" if not kind.needs else f"takes no share on it: --top-{unused[0]} is 0"
        raise UsageError(f"--{unused[0]} is not used by --kind {kind.NAME}, which {why}")
    if "utility" in kind.needs and sets.utility is None:
        raise UsageError(NO_DATA.format(role="utility", kind=kind.NAME, what=MEANT["utility"]))
    if sets.like is not None and kind.NAME != "random":
        raise UsageError(f"--like is for --kind random, not for --kind {kind.NAME}")
    said = [key for key in options if key not in ("seed", "scope")]
    if sets.like is not None and said:
        raise UsageError(f"--like says how many are drawn of what; leave --{said[0].replace('_', '-')} out")


def _opened(reference: str, out: Path | None, force: bool, offline: bool) -> Subject:
    if out is not None:
        check_free(out, force=force)
    subject = open_subject(reference, offline=offline, search=False)
    if subject.adapter is not None:
        raise UnsupportedError(
            "neurons are found in one checkpoint; give the base alone, or merge the adapter with peft"
        )
    if out is not None:
        from weightguard.rewrite import check_apart

        check_apart(out, subject.inputs)
    return subject


def _at_work(kind: Any, running: Running) -> Any:
    if not kind.needs:
        return nullcontext()
    from weightguard.statistics.loading import pinned_threads

    return pinned_threads(running.thread_count)


def _material(
    kind: Any,
    subject: Subject,
    linears: Mapping[str, Any],
    sets: Sets,
    running: Running,
    notes: list[str],
    progress: Progress,
    like: Neurons | None,
) -> Material:
    """Rows are read and encoded before the model is loaded, but for those that still need an answer."""
    from weightguard.locate.material import Material

    if not kind.needs:
        return Material(subject.model, linears, {}, None, progress, like)
    from weightguard.statistics.loading import load_model

    read = {role: _read(role, sets, kind.TOKENS, notes) for role in kind.needs}
    model = load_model(subject.model, dtype=running.dtype, device=running.device)
    data = {role: _encoded(role, read[role], kind, subject, model, running, notes, progress) for role in read}
    if len(data) == 2:
        check_disjoint(data["safety"], data["utility"], "--safety and --utility")
    _check_vocabulary(data.values(), model)
    return Material(subject.model, linears, data, model, progress, like)


def _read(role: str, sets: Sets, tokens: str, notes: list[str]) -> Any:
    """A Dataset, or an EncodedSet where the file is pre-tokenised."""
    from weightguard.data import read_pretokenised

    reference = getattr(sets, role)
    if reference is None or not reference.endswith(".safetensors"):
        dataset, note = rows_of(reference, sets.limit, role)
        shipped = f"{role} data: none given, so the {len(dataset.rows)} prompts shipped with weightguard, with refusals"
        notes.append(shipped if reference is None else note)
        return dataset
    if tokens == "prompt" or sets.limit is not None:
        why = "the probe needs prompts as text" if tokens == "prompt" else "cut the file instead of --limit"
        raise UsageError(f"--{role} {Path(reference).name} is pre-tokenised; {why}")
    ready = read_pretokenised(reference, tokens=tokens)
    notes.append(f"{role} data: {ready.source}, {len(ready.rows)} pre-tokenised rows")
    return ready


def _encoded(
    role: str,
    read: Any,
    kind: Any,
    subject: Subject,
    model: Any,
    running: Running,
    notes: list[str],
    progress: Progress,
) -> EncodedSet:
    """Token ids. "response": a safety row without an answer gets the model's own. "prompt": answers are left out."""
    from weightguard.data import EncodedSet, encode
    from weightguard.statistics.loading import load_tokenizer

    if isinstance(read, EncodedSet):
        return read
    tokenizer = load_tokenizer(*subject.directories)
    if kind.TOKENS == "prompt":
        bare = replace(read, rows=tuple(replace(row, response=None) for row in read.rows))
        return encode(bare, tokenizer, tokens="all", max_length=running.max_length)
    answered = read
    if role == "safety":
        answered = with_answers(read, model, tokenizer, lambda done, total: progress("answer", done, total))
        notes += answered.notes[len(read.notes) :]
    found = encode(answered, tokenizer, tokens="response", max_length=running.max_length)
    notes += data_notes(found)
    return found


def _check_vocabulary(data: Iterable[EncodedSet], model: Any) -> None:
    from weightguard.data import check_vocabulary
    from weightguard.statistics.loading import vocabulary_rows

    for each in data:
        check_vocabulary(each, vocabulary_rows(model))


def _neurons(
    kind: Any, found: Found, material: Material, subject: Subject, running: Running, like: Neurons | None
) -> Neurons:
    facts = {role: facts_of(data, subject, running) | {"counted_tokens": data.counted_tokens}
             for role, data in material.data.items()}  # fmt: skip
    said = {"data": facts, **found.facts} | ({} if like is None else {"like": like.digest()})
    options = {k: v for k, v in settings(kind).items() if like is None or k in ("seed", "scope")}
    digests = {}
    for done, name in enumerate(found.parts, 1):
        digests[name] = tensor_digest(subject.model, name)
        material.progress("digest", done, len(found.parts))
    return Neurons(kind.NAME, kind.PAPER, options, found.parts, digests, said)


def _command(kind_name: str, neurons: Neurons, sets: Sets) -> str:
    words = ["weightguard", "neurons", "MODEL", "--kind", kind_name]
    words += [w for role in ("safety", "utility", "like") if getattr(sets, role) for w in (f"--{role}", role.upper())]
    words += [w for key, value in neurons.options.items() for w in (f"--{key.replace('_', '-')}", str(value))]
    words += ["--limit", str(sets.limit)] if sets.limit else []
    return shlex.join([*words, "-o", "NEURONS"])
