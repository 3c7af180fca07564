"""Judges: what an answer is, harmful or refused or neither, each with a name and a revision.

openings: our own reading of how refusals begin. phrases: the lists of the papers. words: a list of the user's.
classifier and guard: checkpoints. endpoint: any OpenAI-compatible server. matching: right answers of a task.
"""

from weightguard.validate.judges.openings import JUDGE, is_refusal
from weightguard.validate.judges.ruling import Exchange, Judge, Ruling

__all__ = ["JUDGE", "Exchange", "Judge", "Ruling", "is_refusal"]
