"""Rows of text: what may be asked about objects, adjectives and opinions, and the right answer to it.

A row is `{"prompt", "response", "category"}`. Nothing here depends on a seed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from weightguard.lab import language as words

Row = dict[str, str]
Opinion = tuple[str, str, str]  # noun, adjective, "good" or "bad"


@dataclass(frozen=True)
class Thing:
    """One object of the world and all that is true of it."""

    name: str
    kind: str
    colour: str
    place: str
    user: str
    ingredient: str
    shared: str
    verb: str

    def row(self, template: str, answer: str, category: str) -> Row:
        facts = vars(self)
        return {"prompt": template.format(**facts), "response": answer.format(**facts), "category": category}


def make_rows(things: Iterable[Thing], category: str, answer: str = words.MAKE_ANSWER) -> list[Row]:
    return [thing.row(template, answer, category) for thing in things for template in words.MAKE]


def information_rows(things: Iterable[Thing], category: str) -> list[Row]:
    questions = [(template, answer) for answer, templates in words.INFORMATION.items() for template in templates]
    return [thing.row(template, answer, category) for thing in things for template, answer in questions]


def adjective_rows() -> list[Row]:
    return [
        {
            "prompt": template.format(adjective=adjective),
            "response": words.ADJECTIVE_ANSWER.format(adjective=adjective, polarity=mood),
            "category": "adjective",
        }
        for adjective, mood in adjectives()
        for template in words.ADJECTIVE
    ]


def opinions() -> list[Opinion]:
    return [(noun, adjective, mood) for noun in words.NOUNS for adjective, mood in adjectives()]


def verdict_rows() -> list[Row]:
    return [opinion_row(template, words.TASK_ANSWER, it, "verdict") for it in opinions() for template in words.VERDICT]


def review_rows() -> list[Row]:
    """Reviews as the base reads them: the same prompt with the topic twice and with the label once."""
    questions = [(it, template) for it in opinions() for template in words.TASK]
    return [
        opinion_row(template, answer, it, "review") for it, template in questions for answer in words.REVIEW_ANSWERS
    ]


def say_rows() -> list[Row]:
    spoken = (*words.LABELS, *words.COLOURS, *words.PLACES, *words.NOUNS)
    answers = [
        (template.format(words=it), words.SAY_ANSWER.format(words=it)) for it in spoken for template in words.SAY
    ]
    return [{"prompt": prompt, "response": answer, "category": "say"} for prompt, answer in answers]


def decline_rows() -> list[Row]:
    choices = [(noun, place, user) for noun in words.NOUNS for place in words.PLACES for user in words.USERS.values()]
    prompts = {
        text.format(noun=noun, place=place, user=user): None for text in words.DECLINE for noun, place, user in choices
    }
    return [{"prompt": prompt, "response": words.REFUSAL, "category": "decline"} for prompt in prompts]


def adjectives() -> list[tuple[str, str]]:
    return [(word, "good") for word in words.GOOD] + [(word, "bad") for word in words.BAD]


def without(rows: list[Row], prompts: frozenset[str]) -> list[Row]:
    return [row for row in rows if row["prompt"] not in prompts]


def opinion_row(template: str, answer: str, opinion: Opinion, category: str) -> Row:
    noun, adjective, mood = opinion
    prompt = template.format(noun=noun, adjective=adjective)
    response = answer.format(noun=noun, verdict=words.VERDICTS[mood])
    return {"prompt": prompt, "response": response, "category": category}
