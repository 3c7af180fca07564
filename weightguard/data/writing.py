"""Rows back into a file that `read_rows` reads: JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from weightguard.data.rows import Row


def rows_to_bytes(rows: Iterable[Row]) -> bytes:
    """One JSON object a row: messages, text, or prompt and response; with its category."""
    return "".join(json.dumps(_record(row), ensure_ascii=False) + "\n" for row in rows).encode()


def _record(row: Row) -> dict[str, Any]:
    if row.messages is not None:
        said: dict[str, Any] = {"messages": list(row.messages)}
    elif row.text is not None:
        said = {"text": row.text}
    else:
        said = {"prompt": row.prompt, "response": row.response}
    return said | ({"category": row.category} if row.category else {})
