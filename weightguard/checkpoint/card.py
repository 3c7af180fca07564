"""What a model card says about itself: the YAML between the two `---` lines at the top of README.md.

A card is a courtesy: whatever is wrong with it, a checkpoint is read as if it had none. Nothing here raises.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from weightguard.checkpoint.hub import allowed_target
from weightguard.errors import WeightguardError

MAX_BYTES = 1_000_000
MAX_FRONT = 500_000  # characters of YAML: about a second; model cards with every benchmark result have 200 000
MAX_DEPTH = 64

_FRONT = re.compile(r"\ufeff?\s*---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)

_LONG_NUMBER = re.compile(r"[-+0-9a-fA-FxXoO:_.]{1000,}")  # PyYAML reads "1:1:1:..." to base 60, however long it is


def front_matter(directory: Path) -> tuple[dict, str, str]:
    """(front matter as a dict, the same as text, the rest) of README.md, of which at most a megabyte is read.

    Without a card ({}, "", ""); with a card whose front matter is missing, malformed or uses YAML aliases
    ({}, "", the whole text).
    """
    text = _read(directory)
    match = _FRONT.match(text)
    if match is None:
        return {}, "", text
    found = _parse(match[1])
    return (found, match[1], text[match.end() :]) if found is not None else ({}, "", text)


def base_model(directory: Path) -> str | None:
    """The one model that the card says this one was made from; None if it names none, or several (a merge)."""
    said = front_matter(directory)[0].get("base_model")
    names = [n.strip() for n in (said if isinstance(said, list) else [said]) if isinstance(n, str) and n.strip()]
    return names[0] if len(names) == 1 else None


def _read(directory: Path) -> str:
    try:
        target = allowed_target(directory / "README.md", directory)
        with open(os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read(MAX_BYTES).decode("utf-8", errors="replace")
    except (WeightguardError, OSError):
        return ""


def _parse(text: str) -> dict | None:
    """The mapping in `text`. Events are looked at first: an alias can make a few lines grow to gigabytes."""
    import yaml

    if len(text) > MAX_FRONT:
        return None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where libyaml was there
    depth = 0
    try:
        for event in yaml.parse(text, Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            long = isinstance(event, yaml.ScalarEvent) and _LONG_NUMBER.fullmatch(event.value)
            if long or isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH:
                return None
        found = yaml.load(text, Loader=loader)  # a SafeLoader, in C or not
    except Exception:  # PyYAML answers odd scalars (!!int "", 2024-13-45) with whatever came up inside it
        return None
    return found if isinstance(found, dict) else None
