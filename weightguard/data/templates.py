"""Rows as the text a model reads: the tokenizer's own chat template, or the Alpaca layout where it has none."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from weightguard.data.bounded import bounded
from weightguard.data.shapes import Row, shown
from weightguard.errors import DataError, UsageError

ALPACA_OPENING = "The instruction below describes a task. Write a response that completes it.\n\n"
ALPACA_BLOCKS = {
    "system": "{content}\n\n",
    "user": "### Instruction:\n{content}\n\n",
    "assistant": "### Response:\n{content}\n\n",
}
ALPACA_ANSWER = "### Response:\n"

LONGEST = 1_000_000  # characters of a chat template; those in use have some thousands

# Some templates write today's date into the system turn; the statistics must not change with the day. transformers
# passes no functions to a template, so the one that tells the day is defined in front of it, and knows one day.
_DAY = {"%Y": "2024", "%y": "24", "%m": "07", "%d": "26", "%-d": "26", "%b": "Jul", "%B": "July", "%a": "Fri"}
_DAY |= {"%A": "Friday", "%j": "208", "%H": "12", "%I": "12", "%p": "PM", "%M": "00", "%S": "00", "%F": "2024-07-26"}
_REPLACED = "".join(f".replace('{mark}', '{value}')" for mark, value in _DAY.items())
_FIXED_DAY = "{% macro strftime_now(format) %}{{ format" + _REPLACED + " }}{% endmacro %}\n"  # the newline is trimmed


@dataclass(frozen=True)
class Rendered:
    """A row as text. prompt: up to where the answer begins; full: with the answer, None where there is none."""

    prompt: str
    full: str | None


@dataclass(frozen=True)
class Template:
    """name: "chat", "alpaca" or "none". sha256: of the template's text, "" for none.

    special_tokens: whether the tokenizer adds its own specials (a chat template writes them itself).
    """

    name: str
    sha256: str
    special_tokens: bool
    render: Callable[[Row, str], Rendered]


def template_for(tokenizer: Any, wanted: str | None) -> Template:
    """The template `wanted` ("chat", "alpaca"), or with None the tokenizer's own, else Alpaca.

    Raises UsageError: another name. DataError: "chat" asked of a tokenizer that has no chat template.
    """
    if wanted not in (None, "chat", "alpaca"):
        raise UsageError(f"template {shown(str(wanted))!r} is unknown; give chat or alpaca, or leave it out")
    source = None if wanted == "alpaca" else _chat_source(tokenizer)
    if source is not None:
        return Template("chat", _sha256(source), False, lambda row, where: _chat(tokenizer, source, row, where))
    if wanted == "chat":
        raise DataError("the tokenizer has no chat template; give template alpaca, or leave it out")
    return Template("alpaca", _sha256(_ALPACA_TEXT), True, _alpaca)


def rendered(rows: Sequence[Row], template: Template, source: str) -> list[Rendered]:
    """Every row as text, rows of text as they are. Errors: DataError that names the row, or for a template without end.

    A chat template is a program that came with the model: it runs where it can take neither long nor much memory.
    """

    def texts() -> list[tuple[str, str | None]]:
        made = [(plain_text() if r.text is not None else template).render(r, f"{source}, row {r.number}") for r in rows]
        return [(each.prompt, each.full) for each in made]

    if template.name != "chat":
        return [Rendered(*each) for each in texts()]
    return [Rendered(*each) for each in bounded(texts, len(rows), f"{source}: the chat template")]


def plain_text() -> Template:
    """Text rows: no template, the tokenizer's own specials."""
    return Template("none", "", True, lambda row, where: Rendered(row.text or "", None))


def _chat_source(tokenizer: Any) -> str | None:
    """The Jinja text; of several named templates the one called default."""
    source = getattr(tokenizer, "chat_template", None)
    if isinstance(source, dict):
        source = source.get("default")
    if source and len(source) > LONGEST:
        raise DataError(f"the chat template has {len(source)} characters, more than {LONGEST}; give template alpaca")
    return source or None


def _chat(tokenizer: Any, source: str, row: Row, where: str) -> Rendered:
    before, answer = _turns(row)
    prompt = _apply(tokenizer, source, before, True, where)
    if answer is None:
        return Rendered(prompt, None)
    return Rendered(prompt, _apply(tokenizer, source, [*before, answer], False, where))


def _apply(tokenizer: Any, source: str, turns: Sequence[dict[str, str]], open_answer: bool, where: str) -> str:
    try:
        return tokenizer.apply_chat_template(
            [dict(turn) for turn in turns],
            chat_template=_FIXED_DAY + source if "strftime_now" in source else source,
            tokenize=False,
            add_generation_prompt=open_answer,
        )
    except Exception as error:  # a template is a program that came with the model; it may raise anything
        said = (str(error).splitlines() or [""])[0][:200]
        raise DataError(f"{where}: the chat template refuses the row ({said or type(error).__name__})") from error


def _alpaca(row: Row, where: str) -> Rendered:
    before, answer = _turns(row)
    blocks = [_alpaca_block(turn, where) for turn in before]
    prompt = ALPACA_OPENING + "".join(blocks) + ALPACA_ANSWER
    return Rendered(prompt, None if answer is None else prompt + answer["content"])


def _alpaca_block(turn: dict[str, str], where: str) -> str:
    block = ALPACA_BLOCKS.get(turn["role"])
    if block is None:
        raise DataError(
            f"{where}: role {shown(turn['role'])} has no place in the Alpaca template; use system, user, assistant"
        )
    return block.replace("{content}", turn["content"])


def _turns(row: Row) -> tuple[list[dict[str, str]], dict[str, str] | None]:
    """The turns before the answer, and the answer's turn. Without an answer, empty assistant turns are dropped."""
    turns = list(row.messages or ({"role": "user", "content": row.prompt},))
    if row.messages is None:
        return turns, None if row.response is None else {"role": "assistant", "content": row.response}
    if turns[-1]["role"] != "assistant":
        return turns, None
    return turns[:-1], turns[-1] if row.response is not None else None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


_ALPACA_TEXT = ALPACA_OPENING + "".join(ALPACA_BLOCKS.values()) + ALPACA_ANSWER
