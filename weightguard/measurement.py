"""What was measured on a checkpoint: one number with its interval, and the report that holds many of them.

Standard library only: a gate reads these where no model could run. The file form is JSON; `REPORT` is its form and
`forms.schema(REPORT, ...)` its schema. A report is bound to the sha256 of every file of the checkpoint, and carries a
digest over itself: no signature, but damage shows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from weightguard import forms
from weightguard.errors import InputError
from weightguard.forms import SHA256, Anything, Maybe, OneOf, Record, Table

FORMAT = 1
LOWER, HIGHER = "lower", "higher"
MODEL = "model"  # the condition of what is measured on the checkpoint itself; "attack:CELL" after an attack
ROLES = ("harmful", "benign", "over_refusal", "task")
MATCHES = ("exact", "contains", "final-number")  # how answers are compared with responses


@dataclass(frozen=True)
class Kind:
    """Which way is better, in which unit ("share", "nats", "norm"), and what the name means."""

    better: str
    unit: str
    means: str


_PLAIN = {
    "harmful_score": Kind(LOWER, "share", "harmful prompts that the judge calls harmfully answered"),
    "harmful_score_coherent": Kind(LOWER, "share", "the same among coherent answers only"),
    "attack_success_rate": Kind(LOWER, "share", "harmful prompts that were not refused"),
    "refusal_rate": Kind(HIGHER, "share", "harmful prompts that were refused"),
    "over_refusal_rate": Kind(LOWER, "share", "harmless prompts that were refused"),
    "finetune_accuracy": Kind(HIGHER, "share", "rows of the user's task answered right"),
    "utility": Kind(HIGHER, "share", "benign rows answered right"),
    "incoherence_rate": Kind(LOWER, "share", "answers of all sets that are empty or repeat themselves"),
    "judge_disagreement": Kind(LOWER, "share", "harmful prompts on which two judges differ"),
    "harmful_loss": Kind(HIGHER, "nats", "loss per token of harmful answers"),
    "alignment_loss": Kind(LOWER, "nats", "loss per token of aligned answers to harmful prompts"),
    "kl_divergence": Kind(LOWER, "nats", "KL(reference || model) per answer token on benign prompts"),
    "embedding_drift": Kind(LOWER, "norm", "distance to the reference behind the attention blocks, aligned rows"),
    "visage": Kind(HIGHER, "share", "attacks that fail around the model, mean over its basin along random directions"),
}
_COMPARED = (
    "harmful_score", "attack_success_rate", "refusal_rate", "over_refusal_rate", "finetune_accuracy", "utility",
    "incoherence_rate", "harmful_loss", "alignment_loss",
)  # fmt: skip
KINDS: dict[str, Kind] = _PLAIN | {
    f"{name}_change": Kind(_PLAIN[name].better, _PLAIN[name].unit, f"{name} of the model minus that of the reference")
    for name in _COMPARED
}
COMPARED = frozenset(_COMPARED)


@dataclass(frozen=True)
class Measurement:
    """value, low, high: None is unknown, and `note` then says why. low, high: 95 % interval. n: rows or pairs behind it.

    data: sha256 of the rows it was measured on, "" where none were. condition: on what, see MODEL.
    """

    name: str
    value: float | None
    n: int
    low: float | None
    high: float | None
    better: str
    unit: str
    judge: str | None = None
    judge_revision: str | None = None
    data: str = ""
    condition: str = MODEL
    note: str = ""


@dataclass(frozen=True)
class Subject:
    """A checkpoint by content: sha256 of every file under its name in the directory. label: as it was typed or hub id."""

    label: str
    revision: str | None
    files: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        return {"label": self.label, "revision": self.revision, "files": dict(self.files)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Subject:
        return Subject(data["label"], data["revision"], dict(data["files"]))

    def differing(self, other: Subject) -> list[str]:
        """Names of files that are not the same on both sides, sorted."""
        return sorted(n for n in {*self.files, *other.files} if self.files.get(n) != other.files.get(n))


@dataclass(frozen=True)
class Example:
    """An answer as it was given, shortened, with what each judge said of it."""

    role: str
    prompt: str
    answer: str
    rulings: Mapping[str, str]


_MEASUREMENT = Record(
    {
        "name": OneOf(tuple(KINDS)), "value": Maybe(float), "n": int, "low": Maybe(float), "high": Maybe(float),
        "better": OneOf((LOWER, HIGHER)), "unit": OneOf(("share", "nats", "norm")), "judge": Maybe(str),
        "judge_revision": Maybe(str), "data": str, "condition": str, "note": str,
    }
)  # fmt: skip
SUBJECT = Record({"label": str, "revision": Maybe(str), "files": Table(SHA256)})
_DATA = Record({"source": str, "sha256": SHA256, "rows": int})
_EXAMPLE = Record({"role": OneOf(ROLES), "prompt": str, "answer": str, "rulings": Table(str)})
# One point of a safety landscape: `at`, a coordinate an axis; attack success with its interval; share of incoherent answers.
_POINT = Record(
    {"at": [float], "success": Maybe(float), "low": Maybe(float), "high": Maybe(float), "n": int, "incoherent": float}
)
# curves: one for every random direction, or the one line or plane. towards: the other model, at 1 on the first axis.
_LANDSCAPE = Record({"axes": [str], "curves": [Record({"name": str, "points": [_POINT]})], "towards": Maybe(SUBJECT)})
REPORT = Record(
    {
        "format": int, "model": SUBJECT, "reference": Maybe(SUBJECT), "measurements": [_MEASUREMENT],
        "data": Table(_DATA), "settings": Table(Anything()), "notes": [str], "examples": [_EXAMPLE], "digest": SHA256,
    },
    {"landscape": _LANDSCAPE},
)  # fmt: skip


@dataclass(frozen=True)
class Report:
    """Measurements of `model`, and of it against `reference`; on which data, with which settings.

    landscape: attack success around the model, in the form REPORT says; None where nobody walked there.
    """

    model: Subject
    reference: Subject | None
    measurements: tuple[Measurement, ...]
    data: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    landscape: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The file form, sealed."""
        walked = {} if self.landscape is None else {"landscape": dict(self.landscape)}
        return sealed(
            {
                "format": FORMAT,
                "model": self.model.as_dict(),
                "reference": None if self.reference is None else self.reference.as_dict(),
                "measurements": [dataclasses.asdict(m) for m in self.measurements],
                "data": {role: dict(said) for role, said in self.data.items()},
                "settings": dict(self.settings),
                "notes": list(self.notes),
                "examples": [dataclasses.asdict(e) for e in self.examples],
                **walked,
            }
        )

    def to_bytes(self) -> bytes:
        return written(self.as_dict())

    @staticmethod
    def from_dict(data: Any, what: str) -> Report:
        """A parsed report, once its form, its numbers and its digest hold. Error: InputError that begins with `what`."""
        check_format(data, FORMAT, what, "a report; write one with weightguard evaluate")
        forms.check(data, REPORT, what)
        check_seal(data, what)
        for at, said in enumerate(data["measurements"]):
            _check_numbers(said, f"{what}.measurements[{at}]")
        return Report(
            Subject.from_dict(data["model"]),
            None if data["reference"] is None else Subject.from_dict(data["reference"]),
            tuple(Measurement(**said) for said in data["measurements"]),
            data["data"], data["settings"], tuple(data["notes"]), tuple(Example(**e) for e in data["examples"]),
            data.get("landscape"),
        )  # fmt: skip


def _check_numbers(said: Mapping[str, Any], where: str) -> None:
    kind, value, low, high = KINDS[said["name"]], said["value"], said["low"], said["high"]
    if (said["better"], said["unit"]) != (kind.better, kind.unit):
        raise InputError(f"{where}: {said['name']} is in {kind.unit} and better {kind.better}, here it says otherwise")
    if (low is None) != (high is None) or (value is None and low is not None) or said["n"] < 0:
        raise InputError(f"{where}: an interval without its value, or a negative n")
    if low is not None and not low <= value <= high:
        raise InputError(f"{where}: value {value} lies outside of its interval [{low}, {high}]")
    if value is not None and said["n"] < 1:
        raise InputError(f"{where}: a value with no row behind it")
    if kind.unit == "share" and not all(-1 <= v <= 1 for v in (value, low, high) if v is not None):
        raise InputError(f"{where}: a share outside of its range")


def shown(value: float | None, unit: str) -> str:
    """A value as people read it: `95.0 %`, `0.731`, or `unknown`."""
    if value is None:
        return "unknown"
    return f"{100 * value:.1f} %" if unit == "share" else f"{value:.4g}"


def written(data: Mapping[str, Any]) -> bytes:
    """The one way these files are written: insertion order, two spaces, UTF-8, a newline at the end, never NaN."""
    return (json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode()


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with a digest over all the rest at its end."""
    plain = {key: value for key, value in data.items() if key != "digest"}
    return {**plain, "digest": hashlib.sha256(written(plain)).hexdigest()}


def check_seal(data: Mapping[str, Any], what: str) -> None:
    if sealed(data)["digest"] != data["digest"]:
        raise InputError(f"{what}: was changed after it was written; its content does not have the digest it says")


def check_format(data: Any, wanted: int, what: str, kind: str) -> None:
    if not isinstance(data, dict) or "format" not in data:
        raise InputError(f"{what}: not {kind}")
    if data["format"] != wanted or type(data["format"]) is not int:
        raise InputError(f"{what}: format {data['format']!r:.40}; this version reads {wanted}")


def judge_id(spec: str) -> str:
    """The name of a judge given as NAME, FORMAT:CHECKPOINT, FILE or URL; of a path or hub id its last part."""
    if "://" in spec:
        return spec
    head, colon, place = spec.partition(":") if ":" in spec else ("", "", spec)
    return f"{head}{colon}{place.rstrip('/').rpartition('/')[2]}"
