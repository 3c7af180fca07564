"""The verdict's own file form, as `verify` reads it."""

from __future__ import annotations

from weightguard.verdict import Verdict


def plain(verdict: Verdict) -> str:
    """The bytes of the verdict as text."""
    return verdict.to_bytes().decode()
