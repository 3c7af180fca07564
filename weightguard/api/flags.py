"""Options of methods, guards and kinds of neurons, for a command line to make flags of."""

from __future__ import annotations

from typing import Any


def method_options(name: str | None = None) -> dict[str, dict[str, Any]]:
    """Flags of one method, or of all: name -> help, choices, default, type, and whose it is."""
    from weightguard.methods import METHODS, method_class

    return _options_of({each: method_class(each) for each in (METHODS if name is None else (name,))})


def guard_options() -> dict[str, dict[str, Any]]:
    """The same for the guards."""
    from weightguard.guards import GUARDS, guard_class

    return _options_of({each: guard_class(each) for each in GUARDS})


def attack_options() -> dict[str, dict[str, Any]]:
    """The same for the attacks."""
    from weightguard.attacks import ATTACKS, attack_class

    return _options_of({each: attack_class(each) for each in ATTACKS})


def attacks() -> tuple[str, ...]:
    """The attacks by name."""
    from weightguard.attacks import ATTACKS

    return tuple(ATTACKS)


def kinds() -> tuple[str, ...]:
    """What `neurons` can look for."""
    from weightguard.locate import KINDS

    return tuple(KINDS)


def kind_options(name: str | None = None) -> dict[str, dict[str, Any]]:
    """The same for the kinds of `neurons`."""
    from weightguard.locate import KINDS, kind_class

    return _options_of({each: kind_class(each) for each in (KINDS if name is None else (name,))})


def _options_of(classes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    import dataclasses

    fields = [(name, field) for name, cls in classes.items() for field in dataclasses.fields(cls)]
    found: dict[str, dict[str, Any]] = {}
    for name, field in fields:
        if "help" in field.metadata:  # the others are handed over, not typed
            said = {**field.metadata, "default": field.default, "type": str(field.type), "of": []}
            found.setdefault(field.name, said)["of"].append(name)
    return found
