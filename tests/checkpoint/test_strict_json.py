"""What the strict parser takes, what it refuses and in which words, and that nothing makes it slow."""

from __future__ import annotations

import json
import math
import os
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightguard.checkpoint import strict_json
from weightguard.errors import CheckpointError, SystemFailure

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=40,
)

REFUSED = {
    "empty": (b"", "is empty, JSON was expected"),
    "only zeros": (b"\0" * 50, "is empty, JSON was expected"),
    "byte order mark": (b"\xef\xbb\xbf{}", "begins with a byte order mark; save it as plain UTF-8"),
    "git-lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "is a git-lfs pointer, not the file itself; run `git lfs pull`",
    ),
    "web page": (b"<!DOCTYPE html>", "is an HTML or XML page, not JSON; download the file again"),
    "syntax": (b'{\n "a": 1,\n "b" 2}', "line 3 column 6: Expecting ':' delimiter"),
    "cut": (b'{"a": [1, 2', "line 1 column 12: Expecting ',' delimiter"),
    "cut in a string": (b'{"a": "x', "line 1 column 7: Unterminated string starting at"),
    "two values": (b"{} {}", "line 1 column 4: Extra data"),
    "two values, one deep": (b"[] " + b"[" * 100, "line 1 column 4: Extra data"),
    "zeros behind": (b"{}\0\0", "line 1 column 3: Extra data"),
    "trailing comma": (b'{"a": 1,}', "line 1 column 9: Expecting property name enclosed in double quotes"),
    "control character": (b'"a\nb"', "line 1 column 3: Invalid control character at"),
    "not UTF-8": (b'{"a": "\xff"}', "byte 7: not UTF-8"),
    "surrogate in UTF-8": (b'"\xed\xa0\x80"', "byte 1: not UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16-le"), "line 1 column 2: Expecting property name enclosed in double quotes"),
    "half a surrogate pair": (
        b'["\\ud800"]',
        "a string holds half of a surrogate pair (\\ud800 to \\udfff), which is not text",
    ),
    "duplicate key": (b'{"a": 1, "a": 1}', 'the key "a" appears twice in one object'),
    "duplicate key, escaped": (b'{"a": 1, "\\u0061": 1}', 'the key "a" appears twice in one object'),
    "duplicate key, inside": (b'[{"x": {"k\\n": 1, "k\\n": 2}}]', 'the key "k\\n" appears twice in one object'),
    "NaN": (b'{"a": NaN}', "NaN is not JSON"),
    "Infinity": (b"[-Infinity]", "-Infinity is not JSON"),
    "infinite number": (b"1e999", 'the number "1e999" is too large for a float'),
    "long integer": (b"9" * 4301, "an integer of 4301 digits, more than 4300"),
    "deep lists": (b"[" * 65 + b"]" * 65, "nested deeper than 64 levels"),
    "deep objects": (b'{"a":' * 65 + b"1" + b"}" * 65, "nested deeper than 64 levels"),
    "deep enough to crash": (b"[" * 1_000_000, "nested deeper than 64 levels"),
    "deep behind strings with brackets": (b'["]]]"' + b', ["]"' * 64 + b"]" * 65, "nested deeper than 64 levels"),
    "many lists": (b"[" + b"[]," * 4_000_001 + b"1]", "more than 4000000 lists and objects"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    data, words = REFUSED[case]
    with pytest.raises(CheckpointError) as error:
        strict_json.parse(data, "x.json")
    assert str(error.value) == f"x.json: {words}"


def test_taken() -> None:
    assert strict_json.parse(b' {"a": [1, -2.5e3, true, null, "\\ud83d\\ude00"]} \n\t    ', "x") == {
        "a": [1, -2500.0, True, None, "\U0001f600"]
    }
    assert strict_json.parse(b"[" * 64 + b"]" * 64, "x") is not None
    assert strict_json.parse(b'["' + b"[" * 100 + b'", "\\"' + b"{" * 100 + b'"]', "x")[0] == "[" * 100
    assert strict_json.parse(b"-" + b"9" * 4299, "x") < 0
    assert strict_json.parse(b"5", "x") == 5


@given(JSON)
def test_takes_what_others_write(value: object) -> None:
    assert strict_json.parse(json.dumps(value).encode(), "x") == value
    assert strict_json.parse(strict_json.dump(value), "x") == value


@given(st.text(st.sampled_from('[]{}":,\\ 1a')) | st.binary().map(lambda b: b.decode("latin-1")))
@settings(max_examples=500)
def test_never_more_lenient_than_python_and_never_another_error(text: str) -> None:
    try:
        value = strict_json.parse(text.encode(), "x")
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        assert value == json.loads(text)


@given(JSON, st.integers(1, 6))
def test_depth_is_counted_exactly(value: object, limit: int) -> None:
    def depth(v: object) -> int:
        inner = v.values() if isinstance(v, dict) else v if isinstance(v, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    data = json.dumps(value).encode()
    if depth(value) > limit:
        with pytest.raises(CheckpointError, match=f"nested deeper than {limit} levels"):
            strict_json.parse(data, "x", max_depth=limit)
    else:
        strict_json.parse(data, "x", max_depth=limit)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b'"' + b'\\"' * 5_000_000, id="escaped quotes"),
        pytest.param(b'"' + b"\\" * 10_000_000, id="backslashes"),
        pytest.param(b'""' * 5_000_000, id="empty strings"),
        pytest.param(b"[1," * 60 + b"1," * 4_000_000, id="numbers"),
        pytest.param(b"[}" * 2_000_000, id="brackets that do not match"),
        pytest.param(b'[{"a":' * 30 + b"]" * 10_000_000, id="closing brackets"),
        pytest.param(b"1" * 10_000_000, id="one integer"),
        pytest.param(b"1" * 10_000_000 + b".5", id="one float"),
    ],
)
def test_nothing_is_slow(data: bytes) -> None:
    begin = time.process_time()
    with pytest.raises(CheckpointError):
        strict_json.parse(data, "x")
    assert time.process_time() - begin < 2


def test_large_index_is_fast() -> None:
    names = [f"model.layers.{i}.mlp.experts.{j}.down_proj.weight" for i in range(620) for j in range(500)]
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00100.safetensors")}
    data = json.dumps(index, indent=2).encode()
    begin = time.process_time()
    assert strict_json.parse(data, "x") == index
    assert len(data) > 25_000_000 and time.process_time() - begin < 2


def test_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": 1}')
    assert strict_json.read(path) == {"a": 1}
    (tmp_path / "link").symlink_to(path)
    assert strict_json.read(tmp_path / "link", "config") == {"a": 1}
    with pytest.raises(CheckpointError, match=r"^config\.json: 8 bytes, more than the 5 that are read$"):
        strict_json.read(path, max_bytes=5)
    with pytest.raises(CheckpointError, match=r"^x: 8 bytes, more than the 7 that are read$"):
        strict_json.parse(b'{"a": 1}', "x", max_bytes=7)


def test_a_small_file_takes_little_memory(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text("[1]")
    tracemalloc.start()
    try:
        assert strict_json.read(tmp_path / "f.json") == [1]
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_read_refuses_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dir").mkdir()
    for name in ("fifo", "dir"):
        (tmp_path / name).chmod(0o644)
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    before = len(os.listdir("/proc/self/fd"))
    for name, words in {
        "fifo": "not a regular file (prw-r--r--)",
        "dir": "not a regular file (drw-r--r--)",
        "dangling": "a link to nothing",
        "loop": "not a regular file",
        "none": "missing",
    }.items():
        with pytest.raises(CheckpointError) as error:
            strict_json.read(tmp_path / name)
        assert str(error.value) == f"{name}: {words}"
    with pytest.raises(CheckpointError, match=r"^null: not a regular file"):
        strict_json.read(Path("/dev/null"))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable(tmp_path: Path) -> None:
    (tmp_path / "x").touch(mode=0)
    with pytest.raises(SystemFailure, match=r"^x: cannot be opened: Permission denied$"):
        strict_json.read(tmp_path / "x")


def test_dump() -> None:
    assert strict_json.dump({"b": [1, 0.1], "a": "é"}) == '{\n  "b": [\n    1,\n    0.1\n  ],\n  "a": "é"\n}\n'.encode()
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError):
            strict_json.dump([value])


def test_a_disk_that_fails() -> None:
    """The first page of a process is never mapped: reading this regular file gives EIO."""
    with pytest.raises(SystemFailure, match=r"^config\.json: cannot be read: Input/output error$"):
        strict_json.read(Path("/proc/self/mem"), "config.json")
