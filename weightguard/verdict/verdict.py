"""A verdict: pass, fail or undecided, a reason for every rule, and the digests of everything it speaks of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightguard import forms
from weightguard.errors import InputError
from weightguard.forms import SHA256, Maybe, OneOf, Record
from weightguard.measurement import REPORT, SUBJECT, Report, Subject, check_format, check_seal, sealed, written

FORMAT = 1
PASS, FAIL, UNDECIDED = "pass", "fail", "undecided"
_STATUS = OneOf((PASS, FAIL, UNDECIDED))

_REASON = Record(
    {"rule": str, "status": _STATUS, "said": str, "limit": Maybe(float), "value": Maybe(float), "low": Maybe(float),
     "high": Maybe(float), "n": int, "judge": Maybe(str), "unit": Maybe(str), "line": int}
)  # fmt: skip
_POLICY = Record({"name": str, "file": Maybe(str), "sha256": SHA256})
VERDICT = Record(
    {
        "format": int, "verdict": _STATUS, "policy": _POLICY, "model": SUBJECT, "reference": Maybe(SUBJECT),
        "reasons": [_REASON], "report": Maybe(REPORT), "version": str, "digest": SHA256,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Reason:
    """What one rule says: in words, and where it is about a measurement, in numbers. line: of the rule in the policy."""

    rule: str
    status: str
    said: str
    limit: float | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    judge: str | None = None
    unit: str | None = None
    line: int = 1


@dataclass(frozen=True)
class PolicyFile:
    """file: from the folder of the verdict to the policy, None for the shipped one or where there is no such way."""

    name: str
    file: str | None
    sha256: str


@dataclass(frozen=True)
class Verdict:
    """`model`: the files as they were when the verdict was made. `report`: what it was made from."""

    policy: PolicyFile
    model: Subject
    reference: Subject | None
    reasons: tuple[Reason, ...]
    report: Report | None
    version: str

    @property
    def verdict(self) -> str:
        return decided(self.reasons)

    def as_dict(self) -> dict[str, Any]:
        """The file form, sealed."""
        return sealed(
            {
                "format": FORMAT,
                "verdict": self.verdict,
                "policy": dataclasses.asdict(self.policy),
                "model": self.model.as_dict(),
                "reference": None if self.reference is None else self.reference.as_dict(),
                "reasons": [dataclasses.asdict(reason) for reason in self.reasons],
                "report": None if self.report is None else self.report.as_dict(),
                "version": self.version,
            }
        )

    def to_bytes(self) -> bytes:
        return written(self.as_dict())

    @staticmethod
    def from_dict(data: Any, what: str) -> Verdict:
        """A parsed verdict, once its form and its digest hold. Error: InputError that begins with `what`."""
        check_format(data, FORMAT, what, "a verdict; write one with weightguard gate")
        forms.check(data, VERDICT, what)
        check_seal(data, what)
        found = Verdict(
            PolicyFile(**data["policy"]), Subject.from_dict(data["model"]), _subject(data["reference"]),
            tuple(Reason(**reason) for reason in data["reasons"]),
            None if data["report"] is None else Report.from_dict(data["report"], f"{what}.report"), data["version"],
        )  # fmt: skip
        if found.verdict != data["verdict"]:
            raise InputError(f"{what}: says {data['verdict']}, but its reasons make it {found.verdict}")
        return found


def decided(reasons: Sequence[Reason]) -> str:
    """Fail where a rule about the right files fails; undecided where one is open, where the report is about something
    else, or where there is no rule at all; pass only where every rule passes."""
    bound = all(reason.status == PASS for reason in reasons if reason.rule.startswith("binding."))
    statuses = {reason.status for reason in reasons}
    if bound and FAIL in statuses:
        return FAIL
    return PASS if statuses == {PASS} else UNDECIDED


def _subject(data: Mapping[str, Any] | None) -> Subject | None:
    return None if data is None else Subject.from_dict(data)
