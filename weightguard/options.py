"""Options as dataclass fields: one field is a parameter of the API, a flag of the command line and a line of the manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from decimal import Decimal, InvalidOperation
from importlib import import_module
from typing import Any

from weightguard.errors import UsageError


def option(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field that is also a command line flag with this help text."""
    return field(default=default, metadata={"help": text, "choices": choices})


def named_class(table: Mapping[str, str], name: str, flag: str, what: str) -> Any:
    """The class behind a name of `table` (name -> "module:class"), imported now. Error: UsageError listing the names."""
    if name not in table:
        raise UsageError(f"{flag} {name}: unknown; {what} are {', '.join(table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)


def configured(cls: Any, flag: str, options: Mapping[str, Any]) -> Any:
    """`cls` with these options; `flag` is how it was chosen ("--method antidote"). Error: UsageError naming an option."""
    lacking = [key for key in options if key not in cls.__dataclass_fields__]
    if lacking:
        raise UsageError(f"--{lacking[0].replace('_', '-')} is not an option of {flag}")
    for key, value in options.items():
        choices = cls.__dataclass_fields__[key].metadata.get("choices")
        if choices and value not in (None, *choices):
            raise UsageError(f"--{key.replace('_', '-')} {value}: must be one of {', '.join(choices)}")
    return cls(**options)


def as_share(value: float | str | Decimal | None, name: str) -> Decimal:
    """A share between 0 and 1, read as the decimal typed. Error: UsageError."""
    share = as_decimal(value, name)
    if not share.is_finite() or not 0 <= share <= 1:
        raise UsageError(f"--{name} {value}: must lie between 0 and 1")
    if share and share.adjusted() < -30:
        raise UsageError(f"--{name} {value}: too small to mean anything")  # and its fraction too long to compute with
    return share


def as_number(value: float | str | Decimal, name: str, least: float) -> Decimal:
    """A finite number of at least `least`, read as the decimal typed. Error: UsageError."""
    number = as_decimal(value, name)
    if not number.is_finite() or not Decimal(str(least)) <= number <= 10**9:
        raise UsageError(f"--{name} {value}: must be a number from {least:g} to 1e9")
    return number


def as_decimal(value: float | str | Decimal | None, name: str) -> Decimal:
    """A number as the decimal typed; may be infinite or NaN. Error: UsageError."""
    try:
        return value if isinstance(value, Decimal) else Decimal(str(value))
    except InvalidOperation:
        raise UsageError(f"--{name} {value}: not a number") from None


def settings(chosen: Any) -> dict[str, Any]:
    """The options of a method or a kind by flag name, as JSON values, without the ones that do not apply."""
    values = {f.name: getattr(chosen, f.name) for f in dataclasses.fields(chosen)}
    return {key: str(v) if isinstance(v, Decimal) else v for key, v in values.items() if v is not None}
