"""One raw record (a JSON object, a CSV or parquet row) into one Row, whichever of the accepted shapes it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weightguard.errors import DataError

# A prompt key and the answer keys that belong to it; `messages` and `conversations` come first, `text` last.
PAIRS = {
    "prompt": ("response", "completion"),
    "instruction": ("output", "response"),
    "question": ("answer",),
    "goal": ("target",),
}
ANSWERS = ("response", "completion", "output", "answer", "target")
KNOWN_KEYS = frozenset(
    {"messages", "conversations", "text", "input", "context", "category", "is_safe", *PAIRS, *ANSWERS}
)
ACCEPTED = (
    "messages, prompt/response, prompt/completion, instruction(+input)/output, question/answer, goal/target, text"
)

_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant"}
_KINDS = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class Row:
    """One calibration row.

    prompt: what the user said; of a conversation its last user message, of a text row the text.
    response: the answer, or None. Of a conversation: its last message, where that is the assistant's.
    messages: the whole conversation as {"role", "content"}, where the row came as one.
    text: plain text, to be tokenised without a template.
    is_safe: the label of that name, where the row has one.
    number: 1-based line (.jsonl, .txt) or row (.json, .csv, .parquet) in its file.
    """

    prompt: str
    response: str | None
    category: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
    text: str | None = None
    number: int = 0
    is_safe: bool | None = None


def row_from(record: Any, number: int, where: str) -> Row | None:
    """The Row a record means, or None where its prompt or text is blank. `where` opens every message.

    Raises DataError: not an object, no accepted shape, a value of the wrong type.
    """
    if not isinstance(record, Mapping):
        raise DataError(
            f'{where}: found {kind_of(record)}, an object is needed, such as {{"prompt": ..., "response": ...}}'
        )
    found = _content(record, where)
    if not found["prompt"].strip():
        return None
    return Row(number=number, category=_category(record, where), is_safe=_is_safe(record, where), **found)


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    return "a string" if isinstance(value, str) else _KINDS.get(type(value), type(value).__name__)


def shown(text: str, width: int = 40) -> str:
    """A key, value or library's message as part of ours: short, and with nothing that breaks the line."""
    short = text if len(text) <= width else text[:width] + "..."
    return short if short.isprintable() else ascii(short)


def _content(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    for key in ("messages", "conversations"):
        if record.get(key) is not None:
            return _conversation(record[key], key, where)
    for key in PAIRS:
        if record.get(key) is not None:
            return {"prompt": _prompt(record, key, where), "response": _response(record, key, where)}
    if record.get("text") is not None:
        text = _string(record["text"], "text", where)
        return {"prompt": text, "response": None, "text": text}
    raise _no_shape(record, where)


def _no_shape(record: Mapping[str, Any], where: str) -> DataError:
    for key in ("messages", "conversations", *PAIRS, "text"):
        if key in record:
            return DataError(f"{where}: `{key}` is null, {'a list' if key[-1] == 's' else 'a string'} is needed")
    keys = ", ".join(shown(str(key)) for key in list(record)[:8]) or "none"
    return DataError(f"{where}: no known keys (found: {keys}); a row needs one of: {ACCEPTED}")


def _prompt(record: Mapping[str, Any], key: str, where: str) -> str:
    prompt = _string(record[key], key, where)
    extra = next((name for name in ("input", "context") if record.get(name) is not None), None)
    if key != "instruction" or extra is None:
        return prompt
    added = _string(record[extra], extra, where)
    return f"{prompt}\n\n{added}" if added.strip() else prompt


def _response(record: Mapping[str, Any], key: str, where: str) -> str | None:
    """The answer that belongs to `key`; an answer of another shape counts only where it is a string."""
    own = next((name for name in PAIRS[key] if record.get(name) is not None), None)
    other = next((name for name in ANSWERS if isinstance(record.get(name), str)), None)
    name = own or other
    answer = None if name is None else _string(record[name], name, where)
    return answer if answer and answer.strip() else None


def _conversation(value: Any, key: str, where: str) -> dict[str, Any]:
    if not isinstance(value, list) or not value:
        found = "empty" if value == [] else kind_of(value)
        raise DataError(f"{where}: `{key}` is {found}, a list of {{role, content}} is needed")
    messages = tuple(_message(item, f"{key}[{place}]", where) for place, item in enumerate(value))
    asked = [message["content"] for message in messages if message["role"] == "user"]
    if not asked:
        raise DataError(f"{where}: `{key}` holds no message of the user; add one, or give the row as `text`")
    answered = messages[-1]["role"] == "assistant" and bool(messages[-1]["content"].strip())
    return {"prompt": asked[-1], "response": messages[-1]["content"] if answered else None, "messages": messages}


def _message(item: Any, name: str, where: str) -> dict[str, str]:
    if not isinstance(item, Mapping):
        raise DataError(f"{where}: `{name}` is {kind_of(item)}, an object with role and content is needed")
    role_key, content_key = ("role", "content") if "role" in item else ("from", "value")
    role = _string(item.get(role_key), f"{name}.{role_key}", where)
    content = _string(item.get(content_key), f"{name}.{content_key}", where)
    return {"role": _ROLES.get(role, role), "content": content}


def _string(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: `{name}` is {kind_of(value)}, a string is needed")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON may escape half a surrogate pair; no tokenizer takes it
        raise DataError(f"{where}: `{name}` holds half of a surrogate pair; write the whole character") from None
    return value


def _category(record: Mapping[str, Any], where: str) -> str | None:
    """A name; BeaverTails' {name: bool} and lists of names are joined; anything else says nothing."""
    value = record.get("category")
    if isinstance(value, Mapping):
        value = [name for name, holds in value.items() if holds is True]
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        value = ", ".join(value)
    return _string(value, "category", where) or None if isinstance(value, str) else None


def _is_safe(record: Mapping[str, Any], where: str) -> bool | None:
    value = record.get("is_safe")
    if isinstance(value, str):  # a CSV file has nothing but strings
        value = {"true": True, "false": False, "": None}.get(value.strip().lower(), value)
    if value is None or isinstance(value, bool):
        return value
    raise DataError(f"{where}: `is_safe` is {kind_of(value)}, true or false is needed")
