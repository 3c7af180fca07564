"""Data that cannot be read: one line that names the file, the place and what to do, and never another exception."""

from __future__ import annotations

import csv
import gzip
import json
import os
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weightguard.data import formats, read_rows
from weightguard.errors import DataError, SystemFailure, UsageError, WeightguardError

SHAPES = "messages, prompt/response, prompt/completion, instruction(+input)/output, question/answer, goal/target, text"
GOOD = b'{"prompt": "p"}\n'


def _deep(levels: int) -> bytes:
    return b'{"prompt": "p", "x": ' + b"[" * levels + b"]" * levels + b"}"


# file name, content, message after the path
BAD = [
    ("a.jsonl", b"", ": empty data, no rows; give at least one row"),
    ("a.jsonl", b"\n  \n", ": empty data, no rows; give at least one row"),
    ("a.jsonl", b'{"text": " "}\n', ": empty data, no rows (1 blank, 0 filtered out); give at least one row"),
    ("a.json", b" ", ": empty data, no rows; give at least one row"),
    ("a.json", b"[]", ": empty data, no rows; give at least one row"),
    ("a.csv", b"prompt,response\n", ": empty data, no rows; give at least one row"),
    ("a.jsonl", GOOD + b'\n{"prompt": "\xff"}\n', ", line 3: not UTF-8 (byte 0xff); save it as UTF-8"),
    ("a.json", b'[\n{"prompt": "p"},\n{"prompt": "\xfe"}]', ", line 3: not UTF-8 (byte 0xfe); save it as UTF-8"),
    ("a.txt", "text".encode("utf-16"), ", line 1: not UTF-8 (byte 0xff); save it as UTF-8"),
    ("a.jsonl", GOOD + b'{"prompt": }\n', ", line 2: not valid JSON (Expecting value, column 12); correct it"),
    (
        "a.json",
        b'[{"prompt": "p"},\n{]',
        ": not valid JSON (Expecting property name enclosed in double quotes, line 2, column 2); correct it",
    ),
    (
        "a.jsonl",
        b'{"prompt": "p", "n": ' + b"1" * 5000 + b"}",
        ", line 1: not valid JSON (a number of thousands of digits); correct it",
    ),
    ("a.jsonl", GOOD + _deep(100_000), ", line 2: JSON nested deeper than 64; a row is a flat object"),
    ("a.json", b"[" * 100_000, ": JSON nested deeper than 64; a row is a flat object"),
    ("a.jsonl", GOOD + b'{"prompt": "p", "prompt": "q"}', ", line 2: key `prompt` is written twice; keep one"),
    ("a.jsonl", b'{"prompt": "p", "x": [{"y": 1, "y": 1}]}', ", line 1: key `y` is written twice; keep one"),
    ("a.json", b'[{"prompt": "p"}, {"prompt": "p", "a": 1, "a": 2}]', ", row 2: key `a` is written twice; keep one"),
    ("a.json", b'{"data": [], "data": []}', ": key `data` is written twice; keep one"),
    ("a.json", b'{"rows": []}', ': found an object, a list of objects or {"data": [...]} is needed'),
    ("a.json", b'"x"', ': found a string, a list of objects or {"data": [...]} is needed'),
    ("a.jsonl", b"[1]", ', line 1: found a list, an object is needed, such as {"prompt": ..., "response": ...}'),
    ("a.json", b"[3]", ', row 1: found a number, an object is needed, such as {"prompt": ..., "response": ...}'),
    (
        "a.jsonl",
        b'{"foo": 1, "bar\\n": 2}',
        f", line 1: no known keys (found: foo, 'bar\\n'); a row needs one of: {SHAPES}",
    ),
    ("a.jsonl", b"{}", f", line 1: no known keys (found: none); a row needs one of: {SHAPES}"),
    ("a.csv", b"foo,bar\n1,2\n", f", row 1: no known keys (found: foo, bar); a row needs one of: {SHAPES}"),
    ("a.jsonl", b'{"prompt": 3}', ", line 1: `prompt` is a number, a string is needed"),
    ("a.jsonl", b'{"prompt": null}', ", line 1: `prompt` is null, a string is needed"),
    ("a.jsonl", b'{"prompt": NaN}', ", line 1: `prompt` is a number, a string is needed"),
    ("a.jsonl", b'{"prompt": "p", "response": ["r"]}', ", line 1: `response` is a list, a string is needed"),
    ("a.jsonl", b'{"instruction": "p", "input": {}}', ", line 1: `input` is an object, a string is needed"),
    ("a.jsonl", b'{"text": true}', ", line 1: `text` is a boolean, a string is needed"),
    ("a.jsonl", b'{"prompt": "p", "is_safe": 1}', ", line 1: `is_safe` is a number, true or false is needed"),
    (
        "a.jsonl",
        b'{"prompt": "\\ud83d"}',
        ", line 1: `prompt` holds half of a surrogate pair; write the whole character",
    ),
    ("a.jsonl", b'{"messages": null}', ", line 1: `messages` is null, a list is needed"),
    ("a.jsonl", b'{"messages": "m"}', ", line 1: `messages` is a string, a list of {role, content} is needed"),
    ("a.jsonl", b'{"messages": []}', ", line 1: `messages` is empty, a list of {role, content} is needed"),
    (
        "a.jsonl",
        b'{"messages": ["m"]}',
        ", line 1: `messages[0]` is a string, an object with role and content is needed",
    ),
    (
        "a.jsonl",
        b'{"messages": [{"role": "user", "content": null}]}',
        ", line 1: `messages[0].content` is null, a string is needed",
    ),
    (
        "a.jsonl",
        b'{"conversations": [{"from": 1}]}',
        ", line 1: `conversations[0].from` is a number, a string is needed",
    ),
    (
        "a.jsonl",
        b'{"messages": [{"role": "assistant", "content": "a"}]}',
        ", line 1: `messages` holds no message of the user; add one, or give the row as `text`",
    ),
    ("a.csv", b"prompt,prompt\na,b\n", ", line 1: a column name is written twice; keep one"),
    ("a.csv", b"prompt,response\na,b\na,b,c\n", ", row 2: 3 cells, but the header names 2; quote cells with commas"),
    ("a.csv", b'prompt\n"open\n', ", line 2: not valid CSV (unexpected end of data); correct it"),
    ("a.xml", b"<a/>", ": unknown suffix; give one of .jsonl .json .csv .parquet .txt .jsonl.gz .json.gz"),
    ("noname", b"", ": unknown suffix; give one of .jsonl .json .csv .parquet .txt .jsonl.gz .json.gz"),
]


def _message(path: Path, kind: type[WeightguardError] = DataError, **options: object) -> str:
    with pytest.raises(kind) as caught:
        read_rows(str(path), **options)  # type: ignore[arg-type]
    assert type(caught.value) is kind
    return str(caught.value)


@pytest.mark.parametrize(("name", "content", "told"), BAD, ids=[f"{n}-{case[0]}" for n, case in enumerate(BAD)])
def test_message_names_the_place_and_is_one_line(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = _message(path)
    assert message == f"{path}{told}"
    assert len(message.splitlines()) == 1


def test_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    os.symlink(tmp_path / "nowhere", tmp_path / "link.jsonl")
    start = time.monotonic()
    assert _message(tmp_path / "pipe.jsonl").endswith(
        ": is not a regular file (a pipe or a device); write the rows to a file first"
    )
    assert _message(Path("/dev/zero")).startswith("/dev/zero: is not a regular file")
    assert time.monotonic() - start < 5  # a pipe without a writer would wait for ever
    assert _message(tmp_path) == f"{tmp_path}: is a directory, a file is needed (.jsonl .json .csv .parquet .txt)"
    assert _message(tmp_path / "link.jsonl").endswith(": no such file (or a link to nothing); check the path")
    missing = tmp_path / "none.jsonl"
    assert _message(missing) == f"{missing}: no such file, and not a hub data set id (org/name); check the path"
    assert _message(Path("x\0y")) == "'x\\x00y': no such file, and not a hub data set id (org/name); check the path"


def test_what_the_system_refuses_is_its_own_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD)

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(formats.os, "open", refuse)
    assert _message(path, SystemFailure) == f"{path}: cannot be read (Permission denied)"


def test_options_out_of_range(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD)
    assert _message(path, UsageError, limit=0) == "limit is 0; give 1 or more, or leave it out"
    assert _message(path, UsageError, split="x") == f"{path}: split 'x' is for hub data sets; a file has no splits"


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv"])
def test_a_line_over_16_mb_is_refused_and_one_of_16_mb_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    head, tail = {"a.jsonl": (b'{"prompt": "', b'"}\n')}.get(name, (b"", b"\n"))
    first = b"prompt\n" if name == "a.csv" else b"x\n" if name == "a.txt" else GOOD
    fits = b"x" * (formats.LINE_LIMIT - len(head) - len(tail))
    path.write_bytes(first + head + fits + tail)
    assert len(read_rows(str(path)).rows[-1].prompt) == len(fits)
    path.write_bytes(first + head + fits + b"x" + tail)
    assert _message(path) == f"{path}, line 2: longer than 16 MB; split the row"


def test_a_json_value_over_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"[" + GOOD + b"]")
    monkeypatch.setattr(formats, "JSON_LIMIT", 8)
    assert _message(path) == f"{path}: over 1 GB in one JSON value; write it as .jsonl, one object a line"


# Without the hour in it: the workers of one run must collect the same tests.
PACKED = gzip.compress(GOOD, mtime=0)


@pytest.mark.parametrize(
    "content", [PACKED[:-4], b"not gzip", PACKED[:12] + b"\xff" * 30], ids=["cut", "not gzip", "nonsense"]
)
def test_damaged_gzip(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(content)
    assert _message(path).startswith(f"{path}: damaged compressed data (")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 64 + b"PAR1"])
def test_damaged_parquet(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    assert _message(path).startswith(f"{path}: not a readable parquet file (")


def test_parquet_columns(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"foo": ["x"]}), path)
    assert _message(path) == f"{path}, row 1: no known keys (found: foo); a row needs one of: {SHAPES}"
    pyarrow.parquet.write_table(pyarrow.table([["x"], ["y"]], names=["prompt", "prompt"]), path)
    assert _message(path) == f"{path}: a column name is there twice; keep one"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["x", None]}), path)
    assert _message(path) == f"{path}, row 2: `prompt` is null, a string is needed"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), path)
    assert _message(path) == f"{path}: empty data, no rows; give at least one row"


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert _message(path, UsageError) == f"{path}: .parquet needs pyarrow; run: pip install 'weightguard[data]'"


def test_brackets_inside_strings_are_no_depth_and_the_scan_is_linear(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": '[{"\\' * 1000}) + "\n" + _deep(63).decode())
    assert len(read_rows(str(path)).rows) == 2
    path.write_bytes(b'{"prompt": ' + b"[" * 100 + b'\\"' * 1_000_000)
    start = time.monotonic()
    assert _message(path).endswith("JSON nested deeper than 64; a row is a flat object")
    assert time.monotonic() - start < 5


def test_the_csv_limit_is_restored_after_an_error(tmp_path: Path) -> None:
    path, before = tmp_path / "a.csv", csv.field_size_limit()
    path.write_bytes(b'prompt\n"open\n')
    _message(path)
    assert csv.field_size_limit() == before


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=4) | st.just("\ud800"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = [
    "messages",
    "conversations",
    "prompt",
    "response",
    "instruction",
    "input",
    "output",
    "question",
    "text",
    "category",
    "is_safe",
]


def _reads_or_refuses(path: Path) -> None:
    try:
        assert read_rows(str(path)).rows
    except DataError as error:
        assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".txt", ".jsonl.gz", ".parquet"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | st.text('{}[]":,\\ \npromt1u', max_size=60).map(str.encode))
def test_arbitrary_bytes_raise_nothing_but_data_errors(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    _reads_or_refuses(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=JSON_VALUES | st.dictionaries(st.sampled_from(KEYS), JSON_VALUES, max_size=4))
def test_arbitrary_json_raises_nothing_but_data_errors(tmp_path: Path, record: object) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record))
    _reads_or_refuses(path)
