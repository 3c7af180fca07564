"""How long a stranger's regular expression may take, counted from its parse tree before it is run.

A backtracking matcher tries every way in which a pattern can divide a text. k open-ended repeats of single items divide
`length` characters in at most C(length + k, k) ways, alternatives and optional items multiply them, and an open-ended
repeat of something that itself varies has no useful bound.
"""

from __future__ import annotations

import re
from math import comb, inf
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

MAX_WAYS = 5_000_000
MAX_PATTERN = 2000
_ONE = {codes.LITERAL, codes.NOT_LITERAL, codes.ANY, codes.IN, codes.AT, codes.GROUPREF}
_REPEATS = {codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT}


def is_bounded(pattern: str, length: int) -> bool:
    """Whether `re` ends soon on any text of `length` characters. A pattern that is none raises re.error."""
    if len(pattern) > MAX_PATTERN:
        return False
    try:
        repeats, ways = _sequence(parser.parse(pattern))
        re.compile(pattern)
    except (RecursionError, OverflowError):
        return False
    return repeats < 20 and ways * comb(length + repeats, repeats) <= MAX_WAYS


def _sequence(items: Any) -> tuple[int, float]:
    """(open-ended repeats, ways that other choices multiply to)."""
    repeats, ways = 0, 1.0
    for code, argument in items:
        more, times = _item(code, argument)
        repeats, ways = repeats + more, ways * times
    return repeats, ways


def _item(code: Any, argument: Any) -> tuple[int, float]:
    if code in _ONE:
        return 0, 1
    if code in _REPEATS:
        return _repeat(*argument)
    if code is codes.BRANCH:
        return _branch(argument[1])
    if code in (codes.SUBPATTERN, codes.ASSERT, codes.ASSERT_NOT):
        return _sequence(argument[-1])
    if code is codes.ATOMIC_GROUP:
        return _sequence(argument)
    return 0, inf


def _repeat(least: int, most: int, items: Any) -> tuple[int, float]:
    repeats, ways = _sequence(items)
    if most <= 1:
        return repeats, ways + (least == 0)
    if repeats or ways > 1 or items.getwidth()[0] == 0:
        return 0, inf
    return (0, 1) if least == most else (1, 1)


def _branch(branches: Any) -> tuple[int, float]:
    """Of alternatives that are plain words only those count that can stand at one place: one is how another begins."""
    words = [[argument if code is codes.LITERAL else None for code, argument in branch] for branch in branches]
    if all(code in _ONE - {codes.AT, codes.GROUPREF} for branch in branches for code, _ in branch):
        return 0, max(sum(_agree(word, other) for other in words) for word in words)
    found = [_sequence(branch) for branch in branches]
    return max(repeats for repeats, _ in found), sum(ways for _, ways in found)


def _agree(word: list[int | None], other: list[int | None]) -> bool:
    return all(a == b or a is None or b is None for a, b in zip(word, other, strict=False))
