"""The form of a JSON or TOML value, said once: checked value by value, and written out as a JSON schema.

A form is str, bool, int or float (finite; an int will do), [form] for a list, or one of the classes below. Keys that a
Record does not name are refused: a misspelt limit must not be a limit that is never looked at.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from weightguard.errors import InputError

MAX_DEPTH = 64  # of TOML
_NAMES = {str: "a string", bool: "true or false", int: "a whole number", float: "a finite number"}
_SCHEMA = {str: "string", bool: "boolean", int: "integer", float: "number"}


@dataclass(frozen=True)
class Maybe:
    """The form, or null."""

    form: Any


@dataclass(frozen=True)
class Table:
    """Any keys, values of one form."""

    form: Any


@dataclass(frozen=True)
class OneOf:
    """One of these strings."""

    choices: tuple[str, ...]


@dataclass(frozen=True)
class Text:
    """A string that matches a pattern from end to end; `said` names it in messages."""

    pattern: str
    said: str


@dataclass(frozen=True)
class Record:
    """Exactly these keys; those of `optional` may be absent."""

    keys: Mapping[str, Any]
    optional: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Anything:
    """Any JSON value."""


SHA256 = Text(r"[0-9a-f]{64}", "a sha256 in lower-case hex")


def check(value: Any, form: Any, where: str) -> None:
    """Compare a parsed value with a form. Error: InputError in one line that begins with `where` and names the key."""
    if isinstance(form, Maybe):
        if value is not None:
            check(value, form.form, where)
    elif isinstance(form, list):
        _need(isinstance(value, list), value, "a list", where)
        for at, each in enumerate(value):
            check(each, form[0], f"{where}[{at}]")
    elif isinstance(form, (Table, Record)):
        _need(isinstance(value, dict), value, "a table", where)
        _check_table(value, form, where)
    elif isinstance(form, OneOf):
        _need(value in form.choices, value, f"one of {', '.join(form.choices)}", where)
    elif isinstance(form, Text):
        _need(isinstance(value, str) and re.fullmatch(form.pattern, value) is not None, value, form.said, where)
    elif not isinstance(form, Anything):
        _need(_is(value, form), value, _NAMES[form], where)


def _check_table(value: Mapping[str, Any], form: Table | Record, where: str) -> None:
    if isinstance(form, Table):
        for key, each in value.items():
            check(each, form.form, f"{where}.{_shown(key)}")
        return
    known = {**form.keys, **form.optional}
    unknown = next((key for key in value if key not in known), None)
    if unknown is not None:
        raise InputError(f"{where}: unknown key {_shown(unknown)}; known are {', '.join(known)}")
    missing = next((key for key in form.keys if key not in value), None)
    if missing is not None:
        raise InputError(f"{where}: no {missing}")
    for key, each in value.items():
        check(each, known[key], f"{where}.{key}")


def _is(value: Any, kind: type) -> bool:
    if kind is float:  # not math.isfinite, which makes a float of an integer first
        return type(value) in (int, float) and -sys.float_info.max <= value <= sys.float_info.max
    return type(value) is kind and (type(value) is not int or abs(value) < 2**63)


def _need(holds: bool, value: Any, wanted: str, where: str) -> None:
    if not holds:
        raise InputError(f"{where} is {_shown(value)}; it must be {wanted}")


def _shown(value: Any) -> str:
    try:
        text = repr(value) if isinstance(value, str) else str(value)
    except ValueError:  # more digits than Python writes out
        return "a number of thousands of digits"
    short = text if len(text) <= 60 else text[:60] + "..."
    return short if short.isprintable() else ascii(short)


def schema(form: Any, title: str) -> dict[str, Any]:
    """The form as a JSON schema (draft 2020-12)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **_schema(form)}


def _schema(form: Any) -> dict[str, Any]:
    if isinstance(form, Maybe):
        return {"anyOf": [{"type": "null"}, _schema(form.form)]}
    if isinstance(form, list):
        return {"type": "array", "items": _schema(form[0])}
    if isinstance(form, Table):
        return {"type": "object", "additionalProperties": _schema(form.form)}
    if isinstance(form, Record):
        known = {key: _schema(each) for key, each in {**form.keys, **form.optional}.items()}
        return {"type": "object", "required": list(form.keys), "properties": known, "additionalProperties": False}
    if isinstance(form, OneOf):
        return {"enum": list(form.choices)}
    if isinstance(form, Text):
        return {"type": "string", "pattern": f"^{form.pattern}$"}
    return {} if isinstance(form, Anything) else {"type": _SCHEMA[form]}


def toml(raw: bytes, what: str) -> dict[str, Any]:
    """The table in the bytes of a TOML file. Error: InputError in one line that begins with `what`."""
    try:
        found = tomllib.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{what}: byte {error.start}: not UTF-8") from None
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        raise InputError(f"{what}: not TOML: {' '.join(str(error).split())[:200]}") from None
    _check_values(found, what)
    return found


def _check_values(value: Any, what: str, depth: int = 0) -> None:
    """TOML promises 64 bits. Python takes more, and in hexadecimal so many that it cannot print them; and any depth."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InputError(f"{what}: a whole number of more than 64 bits, which is not TOML")
    if depth > MAX_DEPTH:
        raise InputError(f"{what[:100]}...: nested deeper than {MAX_DEPTH} levels")
    held = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in held:
        _check_values(each, f"{what}.{str(key)[:100]}", depth + 1)
