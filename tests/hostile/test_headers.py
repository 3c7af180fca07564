"""Weight files with something wrong in their header: each is refused in one line that says what, before a byte of data."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

F = "model.safetensors: "
H = "model.safetensors: header: "
A = "model.safetensors: tensor 'a'"
SIZES = f"{A}: shape {{}} is not a list of sizes"
ENDS = f"{A}: data_offsets {{}} are not a begin and an end"
NOT_ONE = F + "not a safetensors file (no header where one must be)"
ENTRY = '{"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}'
Case = tuple[Callable[[Any], None], str]


def whole(data: bytes) -> Callable[[Any], None]:
    return lambda m: m.write("model.safetensors", data)


def text(header: str | bytes, data: bytes = bytes(4)) -> Callable[[Any], None]:
    return lambda m: m.header(header, data)


def entry(**changes: Any) -> Callable[[Any], None]:
    return lambda m: m.entry(**changes)


def pair(first: tuple[int, int], second: tuple[int, int], size: int = 8) -> Callable[[Any], None]:
    return lambda m: m.pair(first, second, bytes(size))


def length(said: int, header: bytes = b"{}", data: bytes = b"") -> Callable[[Any], None]:
    return whole(said.to_bytes(8, "little") + header + data)


CASES: dict[str, Case] = {
    # not a safetensors file at all
    "no byte": (whole(b""), F + "0 bytes, too short for a safetensors file; download it again"),
    "nine bytes": (whole(bytes(8) + b"{"), F + "9 bytes, too short for a safetensors file; download it again"),
    "git-lfs pointer": (
        whole(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 99\n"),
        F + "a git-lfs pointer, not the weights; run `git lfs pull` in that directory",
    ),
    "HTML page": (
        whole(b"<!DOCTYPE html><html><body>Please log in</body></html>"),
        F + "an HTML page saved under this name, not the weights; download it again",
    ),
    "HTML page without a doctype": (
        whole(b"\n <HTML><body>404</body></HTML>"),
        F + "an HTML page saved under this name, not the weights; download it again",
    ),
    "XML page": (whole(b"<?xml version='1.0'?><Error>AccessDenied</Error>"), NOT_ONE),
    "zip, which torch.save writes": (whole(b"PK\x03\x04" + bytes(60)), NOT_ONE),
    "pickle": (whole(b"\x80\x02}q\0X\4\0\0\0test" + bytes(60)), NOT_ONE),
    "GGUF": (whole(b"GGUF\3\0\0\0" + bytes(60)), NOT_ONE),
    "JSON without a length": (whole(b'{"a": ' + ENTRY.encode() + b"}"), NOT_ONE),
    "zeros": (whole(bytes(100)), NOT_ONE),
    # the length word
    "length of zero": (length(0), H + "is empty, JSON was expected"),
    "length of one": (length(1), H + "line 1 column 2: Expecting property name enclosed in double quotes"),
    "length too short by one": (length(8, b'{"a": {}}'), H + "line 1 column 9: Expecting ',' delimiter"),
    "length past the end": (length(300), F + "truncated inside its header (10 of at least 308 bytes)"),
    "length past the end by one": (length(3), F + "truncated inside its header (10 of at least 11 bytes)"),
    "length that takes in data": (length(6, b"{}", b"abcd"), H + "line 1 column 3: Extra data"),
    "length that takes in binary data": (length(6, b"{}", b"\xff\xfe\0\0"), H + "byte 2: not UTF-8"),
    "length of 101 MB": (length(101_000_000), NOT_ONE),
    "length with the sign bit": (length(2**63 + 2), NOT_ONE),
    "length of all ones": (length(2**64 - 1), NOT_ONE),
    "length in the other byte order": (whole((2).to_bytes(8, "big") + b"{}"), NOT_ONE),
    # JSON that readers disagree about
    "space before the header": (text(" {}", b""), NOT_ONE),
    "byte order mark": (text(b"\xef\xbb\xbf{}", b""), NOT_ONE),
    "a list": (text("[]", b""), NOT_ONE),
    "a string": (text('"a"', b""), NOT_ONE),
    "not JSON": (text("{a: 1}"), H + "line 1 column 2: Expecting property name enclosed in double quotes"),
    "single quotes": (text("{'a': 1}"), H + "line 1 column 2: Expecting property name enclosed in double quotes"),
    "a comma too many": (
        text(f'{{"a": {ENTRY},}}'),
        H + "line 1 column 61: Expecting property name enclosed in double quotes",
    ),
    "zeros behind the JSON": (text(b"{}\0\0", b""), H + "line 1 column 3: Extra data"),
    "two values": (text("{} {}", b""), H + "line 1 column 4: Extra data"),
    "UTF-16": (
        text('{"a": 1}'.encode("utf-16-le")),
        H + "line 1 column 2: Expecting property name enclosed in double quotes",
    ),
    "not UTF-8": (text(b'{"\xff": 1}'), H + "byte 2: not UTF-8"),
    "half a surrogate pair": (
        text(f'{{"\\ud800": {ENTRY}}}'),
        H + "a string holds half of a surrogate pair (\\ud800 to \\udfff), which is not text",
    ),
    "control character in a name": (text('{"a\nb": 1}'), H + "line 1 column 4: Invalid control character at"),
    "NaN": (text('{"a": NaN}'), H + "NaN is not JSON"),
    "infinity": (text('{"a": -Infinity}'), H + "-Infinity is not JSON"),
    "infinite number": (text('{"a": 1e999}'), H + 'the number "1e999" is too large for a float'),
    "integer of 5000 digits": (text('{"a": ' + "9" * 5000 + "}"), H + "an integer of 5000 digits, more than 4300"),
    "deep lists": (text('{"a": ' + "[" * 100 + "]" * 100 + "}"), H + "nested deeper than 64 levels"),
    "deep enough to end an interpreter": (text('{"a":' * 100_000), H + "nested deeper than 64 levels"),
    "a tensor twice": (text(f'{{"a": {ENTRY}, "a": {ENTRY}}}'), H + 'the key "a" appears twice in one object'),
    "a tensor twice, once escaped": (
        text(f'{{"a": {ENTRY}, "\\u0061": {ENTRY}}}'),
        H + 'the key "a" appears twice in one object',
    ),
    "a dtype twice": (
        text('{"a": {"dtype": "U8", "dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}'),
        H + 'the key "dtype" appears twice in one object',
    ),
    "metadata twice": (
        text('{"__metadata__": {}, "__metadata__": {}}', b""),
        H + 'the key "__metadata__" appears twice in one object',
    ),
    "a key of the metadata twice": (
        text('{"__metadata__": {"format": "pt", "format": "tf"}}', b""),
        H + 'the key "format" appears twice in one object',
    ),
    # metadata
    "metadata that are a list": (text('{"__metadata__": []}', b""), F + "__metadata__ is not an object of strings"),
    "metadata that are null": (text('{"__metadata__": null}', b""), F + "__metadata__ is not an object of strings"),
    "metadata with a number": (text('{"__metadata__": {"a": 1}}', b""), F + "__metadata__ is not an object of strings"),
    "metadata with an object": (
        text('{"__metadata__": {"a": {}}}', b""),
        F + "__metadata__ is not an object of strings",
    ),
    # entries
    "entry that is a list": (text('{"a": []}'), f"{A}: needs exactly dtype, shape and data_offsets"),
    "entry that is empty": (text('{"a": {}}'), f"{A}: needs exactly dtype, shape and data_offsets"),
    "entry without a dtype": (entry(dtype="-"), f"{A}: needs exactly dtype, shape and data_offsets"),
    "entry without a shape": (entry(shape="-"), f"{A}: needs exactly dtype, shape and data_offsets"),
    "entry without offsets": (entry(data_offsets="-"), f"{A}: needs exactly dtype, shape and data_offsets"),
    "entry with a fourth key": (entry(strides=[1]), f"{A}: needs exactly dtype, shape and data_offsets"),
    "unknown dtype": (entry(dtype="F128"), f"{A}: unknown dtype 'F128'"),
    "dtype in lower case": (entry(dtype="u8"), f"{A}: unknown dtype 'u8'"),
    "dtype as torch writes it": (entry(dtype="torch.uint8"), f"{A}: unknown dtype 'torch.uint8'"),
    "dtype that is a number": (entry(dtype=8), f"{A}: unknown dtype '8'"),
    "dtype that is null": (entry(dtype=None), f"{A}: unknown dtype 'None'"),
    "dtype that is a list": (entry(dtype=["U8"]), f"{A}: unknown dtype \"['U8']\""),
    "dtype of a megabyte": (entry(dtype="U" * 1_000_000), f"{A}: unknown dtype '{'U' * 40}'"),
    # names
    "name that is an absolute path": (
        entry(name="/etc/passwd"),
        F + "tensor '/etc/passwd': a path, not the name of a tensor",
    ),
    "name that leads out": (entry(name="a/../../b"), F + "tensor 'a/../../b': a path, not the name of a tensor"),
    "name of a thousand and one characters": (
        entry(name="n" * 1001),
        F + f"tensor '{'n' * 60}'...: a name of 1001 characters, more than 1000",
    ),
    # shapes
    "shape that is negative": (entry(shape=[-4]), SIZES.format("[-4]")),
    "shape that is twice negative": (entry(shape=[-2, -2]), SIZES.format("[-2, -2]")),
    "shape that is minus zero": (
        text('{"a": {"dtype": "U8", "shape": [-0], "data_offsets": [0, 0]}}', b""),
        SIZES.format("[-0.0]"),
    ),
    "shape that is a float": (entry(shape=[4.0]), SIZES.format("[4.0]")),
    "shape that is true": (entry(shape=[True, 4]), SIZES.format("[True, 4]")),
    "shape that is text": (entry(shape=["4"]), SIZES.format("['4']")),
    "shape that is a number": (entry(shape=4), SIZES.format("4")),
    "shape that is null": (entry(shape=None), SIZES.format("None")),
    "shape in a shape": (entry(shape=[[4]]), SIZES.format("[[4]]")),
    "shape of 65 dimensions": (entry(shape=[1] * 65), SIZES.format(str([1] * 65)[:80])),
    "shape beyond 64 bits": (entry(shape=[2**64]), SIZES.format(f"[{2**64}]")),
    "shape whose product overflows to 4": (entry(shape=[2**62 + 1, 4]), SIZES.format(f"[{2**62 + 1}, 4]")),
    "shape whose product overflows to nothing": (entry(shape=[2**32, 2**32]), SIZES.format(f"[{2**32}, {2**32}]")),
    "shape that overflows behind a zero": (
        entry(shape=[2**62, 2**62, 0], data_offsets=[0, 0], data=b""),
        SIZES.format(f"[{2**62}, {2**62}, 0]"),
    ),
    # offsets
    "offsets that are negative": (entry(data_offsets=[-4, 0]), ENDS.format("[-4, 0]")),
    "offsets that are reversed": (entry(data_offsets=[4, 0]), ENDS.format("[4, 0]")),
    "offsets that are floats": (entry(data_offsets=[0.0, 4.0]), ENDS.format("[0.0, 4.0]")),
    "offsets that are text": (entry(data_offsets=["0", "4"]), ENDS.format("['0', '4']")),
    "offsets that are booleans": (entry(data_offsets=[False, True]), ENDS.format("[False, True]")),
    "offsets that are null": (entry(data_offsets=None), ENDS.format("None")),
    "offsets with one end": (entry(data_offsets=[4]), ENDS.format("[4]")),
    "offsets with three ends": (entry(data_offsets=[0, 2, 4]), ENDS.format("[0, 2, 4]")),
    "offsets in an object": (entry(data_offsets={"begin": 0, "end": 4}), ENDS.format("{'begin': 0, 'end': 4}")),
    "offsets beyond 64 bits": (entry(data_offsets=[0, 2**64 + 4]), ENDS.format(f"[0, {2**64 + 4}]")),
    "offsets that wrap around": (entry(data_offsets=[2**64 - 4, 2**64]), ENDS.format(f"[{2**64 - 4}, {2**64}]")),
    "offsets past the end": (
        entry(data_offsets=[0, 400], shape=[400]),
        F + "truncated, 268 bytes where the header needs 664; download the shard again",
    ),
    "offsets of an exabyte": (
        entry(data_offsets=[0, 2**60], shape=[2**60]),
        F + f"truncated, 268 bytes where the header needs {264 + 2**60}; download the shard again",
    ),
    # sizes and cover
    "size one byte short of the shape": (
        entry(data_offsets=[0, 3], data=bytes(3)),
        f"{A}: U8 [4] needs 4 bytes, its offsets hold 3",
    ),
    "size one byte over the shape": (
        entry(data_offsets=[0, 5], data=bytes(5)),
        f"{A}: U8 [4] needs 4 bytes, its offsets hold 5",
    ),
    "size of another dtype": (entry(dtype="F32"), f"{A}: F32 [4] needs 16 bytes, its offsets hold 4"),
    "scalar with too much": (entry(shape=[]), f"{A}: U8 [] needs 1 bytes, its offsets hold 4"),
    "empty tensor with data": (entry(shape=[0]), f"{A}: U8 [0] needs 0 bytes, its offsets hold 4"),
    "half a byte": (
        entry(dtype="F4", shape=[3], data_offsets=[0, 2], data=bytes(2)),
        f"{A}: F4 [3] needs 1.5 bytes, its offsets hold 2",
    ),
    "overlap": (pair((0, 4), (3, 7), 7), F + "tensor 'b' overlaps the one before it (byte 267, expected 268)"),
    "overlap of the same bytes": (
        pair((0, 4), (0, 4), 4),
        F + "tensor 'b' overlaps the one before it (byte 264, expected 268)",
    ),
    "overlap of one inside another": (
        pair((0, 8), (2, 4)),
        F + "tensor 'b' overlaps the one before it (byte 266, expected 272)",
    ),
    "hole at the beginning": (pair((2, 4), (4, 8)), F + "tensor 'a' leaves a hole before it (byte 266, expected 264)"),
    "hole between two tensors": (
        pair((0, 4), (5, 8)),
        F + "tensor 'b' leaves a hole before it (byte 269, expected 268)",
    ),
    "empty tensor beyond the data": (
        pair((0, 4), (9, 9), 4),
        F + "tensor 'b' leaves a hole before it (byte 273, expected 268)",
    ),
    "one byte behind the last tensor": (
        pair((0, 4), (4, 8), 9),
        F + "1 bytes after the last tensor that no tensor owns",
    ),
    "a second file behind the first": (
        entry(data=bytes(4) + bytes(100)),
        F + "100 bytes after the last tensor that no tensor owns",
    ),
    "data without a tensor": (text("{}", bytes(5)), F + "5 bytes after the last tensor that no tensor owns"),
    "truncated by one byte": (
        pair((0, 4), (4, 8), 7),
        F + "truncated, 271 bytes where the header needs 272; download the shard again",
    ),
    "truncated behind the header": (
        pair((0, 4), (4, 8), 0),
        F + "truncated, 264 bytes where the header needs 272; download the shard again",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refused(case: str, model: Any, refused: Callable[..., None]) -> None:
    damage, message = CASES[case]
    damage(model)
    refused(model.path, message)


@pytest.mark.parametrize("case", CASES)
def test_refused_in_a_shard(case: str, model: Any, refused: Callable[..., None]) -> None:
    """The same file as the second of two shards: the message names the shard."""
    damage, message = CASES[case]
    damage(model)
    data = (model / "model.safetensors").read_bytes()
    model.sharded()
    model.write("model-00002-of-00002.safetensors", data)
    refused(model.path, message.replace("model.safetensors", "model-00002-of-00002.safetensors"))


def test_the_valid_header_that_the_cases_change_is_accepted(model: Any, repair: Callable[..., Any]) -> None:
    """Without this, every case above could be refused for one reason that they share."""
    model.entry()
    assert repair(model.path)[2].startswith("weightguard: missing tensor: no layers.0.self_attn.q_proj.weight")
    assert json.loads((model / "model.safetensors").read_bytes()[8:264])["a"]
