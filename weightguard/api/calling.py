"""What every verb takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """A progress that shows nothing."""


def text(path: str | Path | None) -> str | None:
    """A path as text, None as None."""
    return None if path is None else str(path)
