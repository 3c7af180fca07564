"""A policy: what must have been measured, and how bad the bad end of each interval may be.

TOML; `POLICY` is its form and `forms.schema(POLICY, ...)` its schema. A limit that nothing could meet or that nothing
could break is an error, and so is one in the wrong direction: both would look like a check and be none.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from weightguard import forms
from weightguard.errors import InputError
from weightguard.forms import SHA256, OneOf, Record, Table, Text
from weightguard.measurement import HIGHER, KINDS, MATCHES, ROLES, check_format, shown
from weightguard.verdict.grid import OPTIONAL, REQUIRED, Grid

FORMAT = 1
SHIPPED = "weightguard:policy.toml"
MAX_BYTES = 1_000_000
MIN_N = 100

_LIMIT = Record({}, {"max": float, "min": float, "min_n": int, "judge": str, "when_measured": bool})
_PLACE = Text(r"\s*\S.*", "the name of a file or data set")
_ASKING = {"match": OneOf(MATCHES), "max_new_tokens": int, "batch_size": int, "limit": int}
POLICY = Record(
    {"format": int, "name": str, "limits": Table(_LIMIT)},
    {
        "required": [str], "judges": [str], "seeds": [int], "asking": Record({}, _ASKING),
        "data": Record({}, dict.fromkeys(ROLES, _PLACE)), "disjoint_from": [_PLACE],
        "data_sha256": Record({}, dict.fromkeys(ROLES, SHA256)),
        "attacks": Record({"limits": Table(_LIMIT), **REQUIRED}, OPTIONAL),
    },
)  # fmt: skip


@dataclass(frozen=True)
class Limit:
    """`worst` is what the interval's bad end must not pass. judge: whose measurement counts, None for every judge's.

    min_n: rows that must stand behind the measurement. when_measured: no rule where there is no such measurement; every
    other limit leaves the verdict undecided then. line: where in the file.
    """

    name: str
    worst: float
    min_n: int = MIN_N
    judge: str | None = None
    line: int = 1
    when_measured: bool = False

    @property
    def better(self) -> str:
        return KINDS[self.name].better

    @property
    def said(self) -> str:
        sign = ">=" if self.better == HIGHER else "<="
        return f"{self.name} {sign} {shown(self.worst, KINDS[self.name].unit)}"


@dataclass(frozen=True)
class Policy:
    """`data`: role -> file, for a gate that evaluates itself. `data_sha256`: the only rows that count, by role."""

    name: str
    raw: bytes
    limits: tuple[Limit, ...]
    required: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    data: Mapping[str, str] | None = None
    data_sha256: Mapping[str, str] | None = None
    disjoint_from: tuple[str, ...] = ()
    asking: Mapping[str, Any] | None = None
    attacks: Grid | None = None
    attack_limits: tuple[Limit, ...] = ()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.raw).hexdigest()

    @staticmethod
    def parse(raw: bytes, what: str) -> Policy:
        """The policy in the bytes of a TOML file. Error: InputError in one line that begins with `what`."""
        data = _parsed(raw, what)
        check_format(data, FORMAT, what, "a policy; it must begin with format = 1")
        forms.check(data, POLICY, what)
        if not data["limits"]:
            raise InputError(f"{what}.limits: empty; a policy without a limit would pass every model")
        required = tuple(data.get("required", ()))
        _known(required, f"{what}.required")
        _check_values(data, what)
        attacks = data.get("attacks")
        if attacks is not None and not attacks["limits"]:
            raise InputError(f"{what}.attacks.limits: empty; attacks without a limit would all pass")
        return Policy(
            data["name"], raw, _limits(data["limits"], f"{what}.limits", raw, "limits"), required,
            tuple(data.get("judges", ())), tuple(data.get("seeds", ())), data.get("data"), data.get("data_sha256"),
            tuple(data.get("disjoint_from", ())), data.get("asking"),
            None if attacks is None else Grid.of(attacks, f"{what}.attacks"),
            () if attacks is None else _limits(attacks["limits"], f"{what}.attacks.limits", raw, "attacks.limits"),
        )  # fmt: skip


def shipped_policy() -> bytes:
    """The default policy, as it lies in the package."""
    return resources.files("weightguard.verdict").joinpath("policy.toml").read_bytes()


def _parsed(raw: bytes, what: str) -> Any:
    if len(raw) > MAX_BYTES:
        raise InputError(f"{what}: {len(raw)} bytes; a policy has at most {MAX_BYTES}")
    return forms.toml(raw, what)


def _check_values(data: Mapping[str, Any], what: str) -> None:
    """What has the right type and still says nothing, or nothing that could be done."""
    if any(seed < 0 for seed in data.get("seeds", ())):
        raise InputError(f"{what}.seeds: a negative seed; they must be 0 or more")
    for key in ("required", "judges", "seeds", "disjoint_from"):
        twice = next((each for each in data.get(key, ()) if data[key].count(each) > 1), None)
        if twice is not None:
            raise InputError(f"{what}.{key}: {twice!r} twice; once is enough")
    for key, value in data.get("asking", {}).items():
        if key != "match" and value < 1:
            raise InputError(f"{what}.asking.{key} is {value}; it must be at least 1")


def _known(names: tuple[str, ...], where: str) -> None:
    unknown = next((name for name in names if name not in KINDS), None)
    if unknown is not None:
        raise InputError(f"{where}: no measurement {unknown[:60]!r}; known are {', '.join(KINDS)}")


def _limits(table: Mapping[str, Mapping[str, Any]], where: str, raw: bytes, section: str) -> tuple[Limit, ...]:
    _known(tuple(table), where)
    return tuple(_limit(name, said, f"{where}.{name}", _line(raw, f"{section}.{name}")) for name, said in table.items())


def _limit(name: str, said: Mapping[str, Any], where: str, line: int) -> Limit:
    kind = KINDS[name]
    wanted, other = ("min", "max") if kind.better == HIGHER else ("max", "min")
    if other in said or wanted not in said:
        raise InputError(f"{where}: {name} is better {kind.better}, so its limit is {wanted} = NUMBER and nothing else")
    _check_possible(name, float(said[wanted]), where)
    if said.get("min_n", MIN_N) < 1:
        raise InputError(f"{where}.min_n is {said['min_n']}; it must be at least 1")
    optional = said.get("when_measured", False)
    return Limit(name, float(said[wanted]), said.get("min_n", MIN_N), said.get("judge"), line, optional)


def _check_possible(name: str, worst: float, where: str) -> None:
    """Between the best value, which no interval reaches, and the worst, which nothing exceeds; neither included."""
    kind = KINDS[name]
    change = name.endswith("_change")
    if kind.unit == "share":
        low, high = (-1.0, 1.0) if change else (0.0, 1.0)
    elif change:
        return
    else:
        low, high = 0.0, float("inf")
    if not low < worst < high:
        raise InputError(
            f"{where} is {worst:g}, an impossible limit: it must lie between {low:g} and {high:g}, both left out, "
            f"or everything or nothing would pass"
        )


def _line(raw: bytes, section: str) -> int:
    """The line of `[section]`, 1 where it is written in another way."""
    pattern = re.compile(rf"^\s*\[\s*{re.escape(section)}\s*\]", re.M)
    text = raw.decode("utf-8")
    found = pattern.search(text)
    return 1 if found is None else text.count("\n", 0, found.end()) + 1
