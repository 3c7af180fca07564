"""Right answers of a task: exact match, containment, or the final number, each against the row's own response."""

from __future__ import annotations

import re
from collections.abc import Callable

from weightguard.errors import UsageError

REVISION = "1"
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def exact(answer: str, wanted: str) -> bool:
    """Equal but for case, punctuation at the ends of words and spacing."""
    return _words(answer) == _words(wanted)


def contains(answer: str, wanted: str) -> bool:
    """The wanted words stand in the answer one after the other."""
    given, needed = _words(answer), _words(wanted)
    places = range(len(given) - len(needed) + 1)
    return bool(needed) and any(given[at : at + len(needed)] == needed for at in places)


def final_number(answer: str, wanted: str) -> bool:
    """The last number of the answer is the last of the response (GSM8K: what follows `####` there)."""
    given, needed = _last_number(answer), _last_number(wanted)
    return needed is not None and given == needed


MATCHES: dict[str, Callable[[str, str], bool]] = {"exact": exact, "contains": contains, "final-number": final_number}


def matcher(name: str) -> Callable[[str, str], bool]:
    """The match of that name. Error: UsageError."""
    if name not in MATCHES:
        raise UsageError(f"--match {name}: must be one of {', '.join(MATCHES)}")
    return MATCHES[name]


def _words(text: str) -> list[str]:
    stripped = (word.strip(".,:;!?\"'()[]") for word in text.casefold().split())
    return [word for word in stripped if word]


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text.rpartition("####")[2])
    return float(found[-1].replace(",", "")) if found else None
