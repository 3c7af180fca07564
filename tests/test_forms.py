"""Forms: what each takes, what it says of the rest, and the schema it is written out as."""

from __future__ import annotations

from typing import Any

import pytest

from weightguard.errors import InputError
from weightguard.forms import SHA256, Anything, Maybe, OneOf, Record, Table, Text, check, schema

FORM = Record({"name": str, "count": int}, {"shares": [float], "kind": OneOf(("a", "b")), "more": Table(Maybe(bool))})
GOOD: list[Any] = [
    {"name": "x", "count": 0},
    {"name": "", "count": -1, "shares": [], "kind": "a", "more": {}},
    {"name": "x", "count": 1, "shares": [0, 0.5], "more": {"y": None, "z": True}},
]
BAD = {
    "w is 3; it must be a table": 3,
    "w: no count": {"name": "x"},
    "w.name is None; it must be a string": {"name": None, "count": 0},
    "w.count is True; it must be a whole number": {"name": "x", "count": True},
    "w.count is 1.0; it must be a whole number": {"name": "x", "count": 1.0},
    "w.shares[1] is nan; it must be a finite number": {"name": "x", "count": 0, "shares": [1, float("nan")]},
    "w.shares[0] is False; it must be a finite number": {"name": "x", "count": 0, "shares": [False]},
    "w.shares is 'x'; it must be a list": {"name": "x", "count": 0, "shares": "x"},
    "w.kind is 'c'; it must be one of a, b": {"name": "x", "count": 0, "kind": "c"},
    "w.kind is []; it must be one of a, b": {"name": "x", "count": 0, "kind": []},
    "w.more.'y' is 1; it must be true or false": {"name": "x", "count": 0, "more": {"y": 1}},
    "w: unknown key 'nam'; known are name, count, shares, kind, more": {"nam": "x", "count": 0},
}


@pytest.mark.parametrize("value", GOOD)
def test_what_fits(value: Any) -> None:
    check(value, FORM, "w")


@pytest.mark.parametrize("said", BAD)
def test_what_does_not(said: str) -> None:
    with pytest.raises(InputError) as raised:
        check(BAD[said], FORM, "w")
    assert str(raised.value) == said


def test_a_pattern_is_for_the_whole_text() -> None:
    check("a" * 64, SHA256, "w")
    for wrong in ("a" * 63, "A" * 64, "a" * 64 + "\n", 7):
        with pytest.raises(InputError, match="sha256"):
            check(wrong, SHA256, "w")


def test_a_hostile_value_stays_on_one_short_line() -> None:
    with pytest.raises(InputError) as raised:
        check({"\x1b[31m\n" * 1000: 1}, FORM, "w")
    assert str(raised.value).isprintable() and len(str(raised.value)) < 300


def test_the_schema() -> None:
    found = schema(FORM, "thing")
    assert found["required"] == ["name", "count"] and found["additionalProperties"] is False
    assert found["properties"]["shares"] == {"type": "array", "items": {"type": "number"}}
    assert found["properties"]["more"]["additionalProperties"] == {"anyOf": [{"type": "null"}, {"type": "boolean"}]}
    assert schema(Text("x+", "x"), "t")["pattern"] == "^x+$" and schema(Anything(), "t").keys() == {"$schema", "title"}


def test_the_schemas_of_our_files_are_schemas_and_hold_the_shipped_policy() -> None:
    import tomllib

    from weightguard.measurement import REPORT
    from weightguard.verdict.policy import POLICY, shipped_policy
    from weightguard.verdict.verdict import VERDICT

    jsonschema = pytest.importorskip("jsonschema")
    for form in (REPORT, POLICY, VERDICT):
        jsonschema.Draft202012Validator.check_schema(schema(form, "thing"))
    validator = jsonschema.Draft202012Validator(schema(POLICY, "policy"))
    policy = tomllib.loads(shipped_policy().decode())
    assert validator.is_valid(policy) and not validator.is_valid({**policy, "limit": {}})
