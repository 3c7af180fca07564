"""Every format and every shape of row that is accepted, and what is recorded of a file."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from weightguard.data import Row, read_rows

ROWS = [
    {"prompt": "p1", "response": "r1", "category": "c1"},
    {"prompt": "p2, with a comma\nand a line", "response": "r2", "category": "c2"},
]
EXPECTED = (
    Row("p1", "r1", category="c1", number=1),
    Row("p2, with a comma\nand a line", "r2", category="c2", number=2),
)


def _write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _write_parquet(path: Path, rows: list[dict]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


WRITERS = {
    "a.jsonl": _write_jsonl,
    "a.json": lambda path, rows: path.write_text(json.dumps(rows, indent=1)),
    "data.json": lambda path, rows: path.write_text(json.dumps({"version": 1, "data": rows})),
    "a.csv": _write_csv,
    "a.parquet": _write_parquet,
    "A.JSONL": _write_jsonl,
    "a.jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode())),
    "a.json.gz": lambda path, rows: path.write_bytes(gzip.compress(json.dumps(rows).encode())),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path, ROWS)
    found = read_rows(str(path))
    assert found.rows == EXPECTED
    assert found.source == name
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found.skipped, found.notes) == (0, ())


def test_txt_is_one_text_a_line_and_keeps_its_line_number(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("one\r\n\n   \n  två \n".encode())
    found = read_rows(str(path))
    assert found.rows == (Row("one", None, text="one", number=1), Row("  två ", None, text="  två ", number=4))


def _row(tmp_path: Path, record: dict) -> Row:
    path = tmp_path / "one.jsonl"
    _write_jsonl(path, [record])
    return read_rows(str(path)).rows[0]


TURNS = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "u1"},
    {"role": "assistant", "content": "a1"},
    {"role": "user", "content": "u2"},
    {"role": "assistant", "content": "a2"},
]


@pytest.mark.parametrize(
    ("record", "prompt", "response"),
    [
        ({"prompt": "p", "response": "r"}, "p", "r"),
        ({"prompt": "p", "completion": "r"}, "p", "r"),
        ({"instruction": "i", "output": "o"}, "i", "o"),
        ({"instruction": "i", "input": "", "output": "o"}, "i", "o"),
        ({"instruction": "i", "input": "n", "output": "o"}, "i\n\nn", "o"),
        ({"instruction": "i", "context": "c", "response": "r"}, "i\n\nc", "r"),
        ({"question": "q", "answer": "a"}, "q", "a"),
        ({"goal": "g", "target": "t"}, "g", "t"),
        ({"prompt": "p", "target": "t"}, "p", "t"),
        ({"prompt": "p", "target": 0}, "p", None),
        ({"prompt": "p"}, "p", None),
        ({"prompt": "p", "response": None}, "p", None),
        ({"prompt": "p", "response": " "}, "p", None),
        ({"prompt": "p", "response": "r", "score": float("nan"), "nested": {"x": [1]}}, "p", "r"),
        ({"prompt": None, "question": "q", "answer": "a"}, "q", "a"),
        ({"messages": TURNS}, "u2", "a2"),
        ({"messages": TURNS[:4]}, "u2", None),
        ({"messages": TURNS, "prompt": "p", "response": "r"}, "u2", "a2"),
    ],
)
def test_every_shape(tmp_path: Path, record: dict, prompt: str, response: str | None) -> None:
    row = _row(tmp_path, record)
    assert (row.prompt, row.response, row.text) == (prompt, response, None)


def test_a_text_row_is_its_own_prompt(tmp_path: Path) -> None:
    assert _row(tmp_path, {"text": "t"}) == Row("t", None, text="t", number=1)


def test_conversations_become_messages_with_plain_roles(tmp_path: Path) -> None:
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]
    row = _row(tmp_path, {"conversations": turns})
    assert [message["role"] for message in row.messages or ()] == ["system", "user", "assistant"]
    assert (row.prompt, row.response) == ("u", "a")


def test_shapes_may_be_mixed_within_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    _write_jsonl(path, [{"text": "t"}, {"goal": "g", "target": "x"}, {"messages": TURNS}])
    assert [row.prompt for row in read_rows(str(path)).rows] == ["t", "g", "u2"]


def test_parquet_rows_may_be_mixed_and_nested(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    _write_parquet(
        path, [{"prompt": "p", "messages": None, "extra": b"\xff"}, {"prompt": None, "messages": TURNS, "extra": b""}]
    )
    first, second = read_rows(str(path)).rows
    assert (first.prompt, second.prompt, len(second.messages or ())) == ("p", "u2", 5)


@pytest.mark.parametrize(
    ("record", "category", "is_safe"),
    [
        ({"category": {"theft": True, "hate": False, "fraud": True}, "is_safe": False}, "theft, fraud", False),
        ({"category": ["a", "b"], "is_safe": True}, "a, b", True),
        ({"category": float("nan"), "is_safe": None}, None, None),
        ({"category": "x", "is_safe": "FALSE"}, "x", False),
        ({}, None, None),
    ],
)
def test_labels_are_kept(tmp_path: Path, record: dict, category: str | None, is_safe: bool | None) -> None:
    row = _row(tmp_path, {"prompt": "p", **record})
    assert (row.category, row.is_safe) == (category, is_safe)


def test_a_byte_order_mark_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\n\n  \r\n{"prompt": "b"}')
    found = read_rows(str(path))
    assert [(row.prompt, row.number) for row in found.rows] == [("a", 1), ("b", 4)]
    assert found.skipped == 0


def test_blank_prompts_are_left_out_and_said(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    _write_jsonl(path, [{"text": ""}, {"prompt": " ", "response": "r"}, {"prompt": "p"}])
    found = read_rows(str(path))
    assert ([row.number for row in found.rows], found.skipped) == ([3], 2)
    assert found.notes == ("2 rows with a blank prompt or text left out",)


def test_a_limit_takes_the_first_rows_and_reads_nothing_after_them(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\nnot json\n')
    found = read_rows(str(path), limit=2)
    assert [row.prompt for row in found.rows] == ["a", "b"]
    assert found.notes == ("limit 2: the first 2 rows",)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()  # of the whole file all the same


def test_a_cell_beyond_the_csv_modules_default_is_read_and_the_default_restored(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    before = csv.field_size_limit()
    _write_csv(path, [{"prompt": "x" * 200_000}])
    assert len(read_rows(str(path), limit=1).rows[0].prompt) == 200_000
    assert csv.field_size_limit() == before


def test_a_path_of_odd_bytes_is_recorded_as_text(tmp_path: Path) -> None:
    path = tmp_path / "odd\udcff\n.txt"
    path.write_text("x")
    assert json.loads(json.dumps(read_rows(str(path)).source)) == "'odd\\ufffd\\n.txt'"


def test_the_package_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "numpy", "pyarrow", "huggingface_hub", "safetensors")
    code = f"import sys, weightguard.data; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
