"""What a judge gets and what it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Exchange:
    """A prompt as the user wrote it, and the answer to it."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Ruling:
    """None: this judge does not rule on that, or could not (then `failed` is set)."""

    harmful: bool | None = None
    refused: bool | None = None
    failed: bool = False

    def __str__(self) -> str:
        said = [word for word, holds in (("harmful", self.harmful), ("refused", self.refused)) if holds]
        return "no ruling" if self.failed else ", ".join(said) or "harmless"


class Judge(Protocol):
    """`id` names it in reports, `revision` says which words, weights or server it was; read it after `rule`.

    harm, refusals: which of the two it rules on.
    """

    id: str
    harm: bool
    refusals: bool

    @property
    def revision(self) -> str: ...

    def rule(self, exchanges: Sequence[Exchange], progress: Progress) -> list[Ruling]: ...
