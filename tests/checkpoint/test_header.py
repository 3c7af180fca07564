"""The strict header reader against safetensors' own: the same files read the same way, and never one it would refuse."""

from __future__ import annotations

import json
import os
from math import prod
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from weightguard.checkpoint.header import BITS, Header, _parsed, _plain, read_header
from weightguard.errors import CheckpointError, SystemFailure

WHOLE = sorted(dtype for dtype, bits in BITS.items() if bits % 8 == 0)
SHAPES = st.lists(st.integers(0, 4), max_size=4)
TENSORS = st.dictionaries(
    st.text(max_size=12).filter(lambda name: name != "__metadata__" and name[:1] != "/" and ".." not in name),
    st.tuples(st.sampled_from(WHOLE), SHAPES),
    max_size=6,
)
METADATA = st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3)
# What a number, a word or a whole entry of a header is exchanged for.
ODD = [
    "-1",
    "-0",
    "0.0",
    "1e0",
    "1E2",
    "null",
    "true",
    '"0"',
    "[]",
    "{}",
    str(2**32),
    str(2**63),
    str(2**64),
    "01",
    "+1",
    "",
]


def read(data: bytes) -> Header:
    descriptor = os.memfd_create("header")
    try:
        os.write(descriptor, data)
        return read_header(descriptor, "x.safetensors")
    finally:
        os.close(descriptor)


def file_of(header: object, data: bytes = b"", padding: int = 0) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header, ensure_ascii=False).encode()
    text += b" " * padding
    return len(text).to_bytes(8, "little") + text + data


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Valid files: any dtypes and shapes, tensors in any order in header and data, padded or not, metadata or not."""
    entries: dict[str, Any] = {}
    position = 0
    for name, (dtype, shape) in draw(TENSORS).items():
        size = prod(shape) * BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    order = draw(st.permutations(sorted(entries)))
    metadata = draw(METADATA)
    header = {} if metadata is None else {"__metadata__": metadata}
    data = bytes(i % 251 for i in range(position))
    return file_of(header | {name: entries[name] for name in order}, data, draw(st.integers(0, 9)))


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid file with a few bytes or words of it exchanged, cut out, doubled or put in."""
    data = draw(files())
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, max(0, len(data) - 1)))
        end = min(len(data), begin + draw(st.integers(0, 6)))
        new = draw(st.binary(max_size=6) | st.sampled_from(ODD).map(str.encode) | st.just(data[begin:end] * 2))
        data = data[:begin] + new + data[end:]
    return data


@st.composite
def reworded(draw: st.DrawFn) -> bytes:
    """A file whose header is well-formed JSON of the right length, with one number or word in it exchanged."""
    whole = draw(files())
    length = int.from_bytes(whole[:8], "little")
    text, data = whole[8 : 8 + length].decode(), whole[8 + length :]
    places = [i for i, letter in enumerate(text) if letter.isdigit()] or [0]
    at = draw(st.sampled_from(places))
    return file_of((text[:at] + draw(st.sampled_from(ODD)) + text[at + 1 :]).encode(), data)


@st.composite
def shifted(draw: st.DrawFn) -> bytes:
    """Two tensors of bytes that may lie anywhere: apart, over each other, in each other, past the data or short of it."""
    ends = st.tuples(st.integers(0, 6), st.integers(0, 4))
    ranges = {name: (begin, begin + size) for name, (begin, size) in {"a": draw(ends), "b": draw(ends)}.items()}
    entries = {n: {"dtype": "U8", "shape": [e - b], "data_offsets": [b, e]} for n, (b, e) in ranges.items()}
    return file_of(entries, bytes(draw(st.integers(0, 11))))


@given(files())
@settings(max_examples=300, deadline=None)
def test_valid_files_are_read_as_safetensors_reads_them(data: bytes) -> None:
    found = read(data)
    theirs = dict(deserialize(data))
    assert set(found.tensors) == set(theirs)
    for name, info in found.tensors.items():
        assert list(info.shape) == theirs[name]["shape"]
        assert data[info.start : info.end] == bytes(theirs[name]["data"])
        assert info.dtype == theirs[name]["dtype"]
    assert found.raw == data[: 8 + int.from_bytes(data[:8], "little")]


@given(damaged() | reworded() | shifted() | st.binary(max_size=40))
@settings(max_examples=1500, deadline=None)
def test_damaged_files_are_refused_or_mean_the_same_to_safetensors(data: bytes) -> None:
    try:
        found = read(data)
    except CheckpointError as error:
        assert str(error).startswith("x.safetensors: ") and "\n" not in str(error) and len(str(error)) < 4000
        return
    theirs = dict(deserialize(data))
    assert {n: list(i.shape) for n, i in found.tensors.items()} == {n: t["shape"] for n, t in theirs.items()}


@given(files() | damaged() | reworded())
@settings(max_examples=1500, deadline=None)
def test_the_fast_way_takes_nothing_that_the_parser_refuses(data: bytes) -> None:
    """What it takes it reads alike; what it leaves to the parser, or refuses itself, is no matter."""
    text = data[8 : 8 + int.from_bytes(data[:8], "little")]
    try:
        found = _plain(text, "x", 8) if text[:1] == b"{" else None
    except CheckpointError:
        found = None
    assert found is None or found == _parsed(text, "x", 8)


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize("metadata", [{}, {"__metadata__": {"format": "pt", "a": '{"b": [1, "}"]}', "ü": "\n\\"}}])
def test_what_writers_write_goes_the_fast_way(separators: tuple[str, str], metadata: dict[str, Any]) -> None:
    entries = {"a.b": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}
    entries["ü {}"] = {"dtype": "F32", "shape": [], "data_offsets": [12, 16]}
    text = json.dumps(metadata | entries, separators=separators, ensure_ascii=False).encode() + b"   "
    found = _plain(text, "x", 8)
    assert found is not None and found == _parsed(text, "x", 8) and found[1] == metadata.get("__metadata__", {})


@pytest.mark.parametrize(
    "text",
    [
        '{"a":E,"a":E}', '{"a":E,}', '{"a":E,,"b":E}', '{"a":E "b":E}', '{"a":E}}', '{"a":E,"__metadata__":E}', '{,"a":E}',
        '{"__metadata__":{"a":"b","a":"b"},"a":E}', '{"__metadata__":{"a":1},"a":E}', '{"__metadata__":{"a":"b"},}',
        '{"a":{"dtype":"U8","shape":[01],"data_offsets":[0,1]}}', '{"a":{"dtype":"U8","shape":[1,],"data_offsets":[0,1]}}',
        '{"a":{"dtype":"U8","shape":[0,99999999999999999999],"data_offsets":[0,0]}}', '{"a\\":E}', '{"a":E}x', '["a",E]', '{}',
        '{"a":{"dtype":"U8","dtype":"U8","shape":[],"data_offsets":[0,1]}}', '{"\t":E}', '{"a":E,"b":[]}', '{"a":E;"b":E}',
    ],
)  # fmt: skip
def test_the_fast_way_leaves_what_is_odd_to_the_parser(text: str) -> None:
    entry = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    assert _plain(text.replace("E", entry).encode(), "x", 8) is None


@pytest.mark.full
@given(damaged() | reworded() | shifted())
@settings(max_examples=50_000, deadline=None)
def test_damaged_files_at_length(data: bytes) -> None:
    test_damaged_files_are_refused_or_mean_the_same_to_safetensors.hypothesis.inner_test(data)


def test_sub_byte_types_must_fill_whole_bytes() -> None:
    entry = {"dtype": "F4", "shape": [3, 2], "data_offsets": [0, 3]}
    assert read(file_of({"a": entry}, b"xyz")).tensors["a"].nbytes == 3
    deserialize(file_of({"a": entry}, b"xyz"))
    with pytest.raises(CheckpointError, match=r"needs 1\.5 bytes, its offsets hold 2"):
        read(file_of({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, b"xy"))


@pytest.mark.parametrize("word", ["-0", "0.0", "1e0"])
def test_what_only_safetensors_refuses_among_numbers(word: str) -> None:
    data = file_of(f'{{"a": {{"dtype": "U8", "shape": [{word}], "data_offsets": [0, 0]}}}}'.encode())
    with pytest.raises(SafetensorError):
        deserialize(data)
    with pytest.raises(CheckpointError, match="is not a list of sizes"):
        read(data)


def test_every_dtype_of_safetensors_is_known() -> None:
    """The error of an unknown dtype lists those that safetensors knows."""
    with pytest.raises(SafetensorError) as error:
        deserialize(file_of({"a": {"dtype": "?", "shape": [], "data_offsets": [0, 0]}}))
    listed = str(error.value).partition("expected one of ")[2].split("at line")[0]
    assert {name for name in listed.replace("`", "").replace(" ", "").split(",") if name} == set(BITS)


def test_offsets_are_absolute_and_order_is_kept() -> None:
    entries = {
        "b": {"dtype": "U8", "shape": [2], "data_offsets": [3, 5]},
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
    }
    data = file_of(entries, b"aaabb", padding=3)
    found = read(data).tensors
    assert list(found) == ["b", "a"]
    assert data[found["b"].start : found["b"].end] == b"bb"


def test_a_million_and_one_tensors_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightguard.checkpoint.header.MAX_TENSORS", 40)
    entries = {str(i): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(41)}
    with pytest.raises(CheckpointError, match=r"^x.safetensors: 41 tensors in one header, more than 40$"):
        read(file_of(entries))
    entries = {"__metadata__": {}, **entries}
    with pytest.raises(CheckpointError, match=r"^x.safetensors: 41 tensors in one header, more than 40$"):
        read(file_of(entries))
    with pytest.raises(CheckpointError, match=r"^x.safetensors: header: more than 42 objects$"):  # before any is made
        read(file_of(json.dumps(entries, indent=1).encode()))


def test_a_disk_that_fails() -> None:
    """The first page of a process is never mapped: reading this regular file gives EIO."""
    with (
        open("/proc/self/mem", "rb") as file,
        pytest.raises(SystemFailure, match=r"^shard: cannot be read: Input/output error$"),
    ):
        read_header(file.fileno(), "shard")
