"""What a method says it needs, brought together: statistics, checkpoints, data. A need is a word in its NEEDS."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightguard.api.collect import Progress, Running, collect, encoded
from weightguard.api.subject import Subject
from weightguard.checkpoint import predicting_layers, sees
from weightguard.errors import MismatchError, UsageError
from weightguard.methods.inputs import Inputs

if TYPE_CHECKING:
    from weightguard.checkpoint import Checkpoint
    from weightguard.parts import Neurons
    from weightguard.statistics.norms import InputNorms

TOWERS = "of this model only the language model is repaired: what makes it see stays as it is"
# Need -> the fields of `Data` it may look at.
_LOOKS_AT = {
    "harmful": ("harmful", "stats", "utility"),
    "unaligned": ("unaligned",),
    "neurons": ("neurons",),
    "safety": ("safety",),
    "benign": ("benign",),
}


@dataclass(frozen=True)
class Data:
    """References by role (data sets, checkpoints, files of ours), and how many rows of each data set are read."""

    harmful: str | None = None
    utility: str | None = None
    safety: str | None = None
    benign: str | None = None
    stats: str | None = None
    unaligned: str | None = None
    neurons: str | None = None
    limit: int | None = None

    def named(self, method: Any) -> list[str]:
        """The roles that were given and that this method looks at, in the order of the fields."""
        used = {role for need in method.NEEDS for role in _LOOKS_AT[need]}
        return [role for role in vars(self) if role in used and getattr(self, role) is not None]


@dataclass
class Notes:
    """Where things came from and what was left out, in words; each once, in order."""

    said: list[str] = field(default_factory=list)

    def add(self, *notes: str) -> None:
        self.said += [note for note in notes if note not in self.said]


def gather(method: Any, subject: Subject, data: Data, running: Running, notes: Notes, progress: Progress) -> Inputs:
    """Everything a settled method may look at. Errors: UsageError for a role it does not use or lacks, and theirs."""
    from weightguard.rewrite import check_companions

    sources = subject.sources(method.target)
    check_companions(sources.model)
    _refuse_unused(method, data)
    notes.add(*_outside(subject))
    inputs: dict[str, Any] = {}
    if "harmful" in method.NEEDS:
        inputs["harmful"] = _statistics(method, subject, data, running, notes, progress)
        inputs["utility"] = _utility(method, subject, data, running, notes, progress)
    if "unaligned" in method.NEEDS:
        notes.add(*_unlike(subject))
        inputs["direction"] = subject.direction
        inputs["factors"] = subject.factor_pairs() if method.target == "factor" else {}
    if "neurons" in method.NEEDS:
        inputs["neurons"] = _neurons(method, subject, data, notes)
    return Inputs(sources, subject.editable(method.target, method.scope), **inputs)


def _outside(subject: Subject) -> list[str]:
    """What no scope holds: a vision tower, layers beyond the last; adapted modules such as a head."""
    if subject.adapter is None:
        return [*([TOWERS] if sees(subject.model.config) else []), *_guessing(subject.model)]
    others = [name for name in subject.factor_pairs() if name not in subject.named]
    said = f"{len(others)} adapted modules outside the decoder blocks (first: {others[0]})" if others else ""
    return [f"{said} are not repaired: their update stays as it is"] if others else []


def _guessing(model: Checkpoint) -> list[str]:
    """Layers that only guess further tokens ahead: no forward pass of the model runs them."""
    places = tuple(f".layers.{number}." for number in predicting_layers(model.config))
    held = [name for name in model.tensors if any(place in name for place in places)]
    said = f"{len(held)} tensors of layers that guess further tokens (first: {held[0]})" if held else ""
    return [f"{said} are not repaired: stock transformers leaves them out"] if held else []


def _unlike(subject: Subject) -> list[str]:
    """What to know where the two sides of the alignment direction are stored in different dtypes."""
    sides = [side for side in (subject.aligned, subject.unaligned) if side is not None]
    kinds = [{side.info(n).dtype for n in subject.named if n in side.tensors} for side in sides]
    if len(kinds) < 2 or kinds[0] == kinds[1]:
        return []
    said = " and ".join("/".join(sorted(kind)) for kind in kinds)
    return [f"aligned and unaligned are stored as {said}: their difference holds the rounding of the coarser one"]


def _refuse_unused(method: Any, data: Data) -> None:
    used = {"safety", *data.named(method)}
    given = [role for role, value in vars(data).items() if value is not None and role != "limit"]
    unused = next((role for role in given if role not in used), None)
    if unused is not None:
        raise UsageError(f"--{unused} is not used by --method {method.NAME}, {_reads(method.NEEDS)}")


def _reads(needs: Iterable[str]) -> str:
    return f"which reads {', '.join(f'--{need}' for need in needs)}" if needs else "which looks at no data"


def _neurons(method: Any, subject: Subject, data: Data, notes: Notes) -> Neurons:
    """The neurons, once they are known to belong to what the method edits. Errors: UsageError, MismatchError."""
    from weightguard.parts import Neurons

    if data.neurons is None:
        raise UsageError(f"--method {method.NAME} needs --neurons, a file written by weightguard neurons")
    found = Neurons.load(Path(data.neurons))
    if method.target == "delta" and subject.aligned is not None and _is_of(found, subject.aligned):
        notes.add("the neurons were found in the aligned model")
    elif subject.adapter is not None:
        raise MismatchError(
            "the neurons were not found in the base of this adapter; find them there with weightguard neurons"
        )
    elif method.target == "delta" and not _is_of(found, subject.model):
        raise MismatchError(
            "the neurons were found neither in MODEL nor in the aligned model; give the --aligned they were found in, or "
            "find them again with weightguard neurons"
        )
    else:
        found.check_fits(subject.model)
        notes.add("the neurons were found in the model that is edited")
    return found


def _is_of(neurons: Neurons, checkpoint: Checkpoint) -> bool:
    try:
        neurons.check_fits(checkpoint)
    except MismatchError:
        return False
    return True


def _utility(
    method: Any, subject: Subject, data: Data, running: Running, notes: Notes, progress: Progress
) -> InputNorms | None:
    if method.utility_ratio is None:
        if data.utility is not None:
            raise UsageError("--utility needs --utility-ratio, the share of entries to leave alone")
        return None
    if data.utility is None:
        raise UsageError("--utility-ratio needs --utility data")
    found, note = encoded(subject, data.utility, "utility", method.tokens, data.limit, running)
    notes.add(note)
    return collect(subject, found, running, progress)


def _statistics(
    method: Any, subject: Subject, data: Data, running: Running, notes: Notes, progress: Progress
) -> InputNorms:
    from weightguard.statistics.norms import InputNorms

    if data.stats is None:
        found, note = encoded(subject, data.harmful, "harmful", method.tokens, data.limit, running)
        notes.add(note, *data_notes(found))
        return collect(subject, found, running, progress)
    if data.harmful is not None:
        raise UsageError("--stats and --harmful: the statistics come from one of them; give one")
    norms = InputNorms.load(Path(data.stats))
    said = norms.facts.get("tokens")
    if said != method.tokens:
        raise UsageError(f"--stats were collected over the tokens {said!r}, the repair asks for {method.tokens!r}")
    notes.add(f"harmful data: statistics collected earlier on {norms.facts['data']['source']}")
    return norms


def data_notes(data: Any) -> list[str]:
    """What happened to rows on the way to tokens, in words."""
    notes = []
    if data.truncated:
        notes.append(f"{data.truncated} rows of {data.source} were cut at --max-length tokens")
    if data.without_response and data.tokens == "response":
        notes.append(f"{data.without_response} rows of {data.source} have no answer and were not counted")
    return notes
