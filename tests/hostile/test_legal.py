"""What is odd and legal, and lies in ordinary repositories: it is repaired, verified, and kept as it was."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import deserialize

from weightguard.cli.main import main

SHARD = "model-00002-of-00002.safetensors"
UP, NORM = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
Change = Callable[[Any], object]


def reordered(m: Any) -> None:
    """The header names the tensors in another order than the data has them."""
    raw = (m / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8 : 8 + length])
    text = json.dumps(dict(reversed(entries.items()))).encode()
    m.write("model.safetensors", len(text).to_bytes(8, "little") + text + raw[8 + length :])


def begin_at(m: Any, rest: int) -> None:
    """Data that begin at an address that is `rest` modulo 8."""
    raw = (m / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    text = raw[8 : 8 + length] + b" " * ((rest - length) % 8)
    m.write("model.safetensors", len(text).to_bytes(8, "little") + text + raw[8 + length :])


def add(name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> Change:
    return lambda m: m.tensor(name, dtype, shape, data)


def first(name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> Change:
    """The tensor before all others, so that these begin at an odd address."""

    def change(m: Any) -> None:
        m.tensors = {name: (dtype, shape, data), **m.tensors}
        m.single()

    return change


def typed(**dtypes: str) -> Change:
    """The matrices of some roles in other dtypes."""

    def change(m: Any) -> None:
        for role, dtype in dtypes.items():
            name = next(n for n in m.tensors if f".{role}_proj." in n)
            m.tensor(name, dtype, m.tensors[name][1])

    return change


def sharded(change: Change = lambda m: None) -> Change:
    return lambda m: (m.sharded(), change(m))


def named(file: str) -> Change:
    """A second shard of this name."""

    def change(m: Any) -> None:
        m.sharded()
        (m / SHARD).rename(m / file)
        swap = {SHARD: file}
        m.index(lambda weight_map: weight_map.update({n: swap.get(f, f) for n, f in weight_map.items()}))

    return change


def one_shard(m: Any) -> None:
    (m / "model.safetensors").rename(m / "model-00001-of-00001.safetensors")
    m.index(lambda weight_map: weight_map.update(dict.fromkeys(weight_map, "model-00001-of-00001.safetensors")))


def hard_linked(m: Any) -> None:
    os.link(m / "model.safetensors", m.path.parent / "also.safetensors")


def linked_inside(m: Any) -> None:
    m.write("store/weights", (m / "model.safetensors").read_bytes())
    m.link("model.safetensors", "store/weights")


LEGAL: dict[str, Change] = {
    "as save_pretrained writes it": lambda m: None,
    "no metadata": lambda m: m.write("model.safetensors", without_metadata(m)),
    "metadata in Unicode": lambda m: m.single(größe="模型 \U0001f600", **{"": ""}),
    "tensors in another order than the data": reordered,
    **{f"data that begin at an address of {i} modulo 8": lambda m, i=i: begin_at(m, i) for i in range(8)},
    "tensors at odd addresses": first("a", "U8", (3,), b"abc"),
    "a tensor without an entry": add("model.empty", "F32", (0, 4), b""),
    "a tensor without an entry, first": first("a", "F32", (0,), b""),
    "a scalar": add("model.scale", "F32", (), b"\0\0\x80\x3f"),
    "a scalar integer": add("model.steps", "I64", (), bytes(8)),
    "an integer buffer": add("model.layers.0.self_attn.position_ids", "I64", (1, 3), bytes(24)),
    "a boolean mask": add("model.layers.0.self_attn.bias", "BOOL", (2, 2), b"\1\0\1\1"),
    "a complex buffer": add("model.freqs_cis", "C64", (2,), bytes(16)),
    "integers that would be NaN as floats": add("model.mask", "I32", (1,), b"\0\0\xc0\x7f"),
    "double precision": typed(q="F64", k="F64", v="F64", o="F64", gate="F64", up="F64", down="F64"),
    "four dtypes": typed(q="F16", k="BF16", v="F64"),
    "a name in Unicode with spaces": add("größe der 模型", "F32", (1,), bytes(4)),
    "a name that is empty": add("", "F32", (1,), bytes(4)),
    "a name with a slash": add("model/scale", "F32", (1,), bytes(4)),
    "a name with a new line": add("model\nscale", "F32", (1,), bytes(4)),
    "a name of a thousand characters": add("n" * 1000, "F32", (1,), bytes(4)),
    "a matrix of zeros": add(UP, "F32", (6, 4), bytes(96)),
    "two shards": sharded(),
    "one shard and an index": one_shard,
    "a shard in Unicode with spaces": named("weights 模型 2.safetensors"),
    "an index without metadata": sharded(lambda m: m.index(lambda _: None, metadata=None)),
    "an index without a total_size": sharded(lambda m: m.index(lambda _: None, metadata={"format": "pt"})),
    "an index with more keys": sharded(lambda m: m.index(lambda _: None, note="x")),
    "an index with a wrong total_size": sharded(lambda m: m.index(lambda _: None, metadata={"total_size": 3})),
    "an index with a total_size of text": sharded(lambda m: m.index(lambda _: None, metadata={"total_size": "x"})),
    "a link to a file in a folder of its own": linked_inside,
    "a hard link": hard_linked,
    "weights in other formats beside": lambda m: m.write("pytorch_model.bin", b"PK"),
    "a shard of an earlier upload beside": sharded(lambda m: m.write("model-00009-of-00009.safetensors", b"old")),
    "hidden files and folders": lambda m: (m.write(".gitattributes", b"*"), m.write(".cache/lock", b"")),
    "a config in Unicode": lambda m: m.config(note="模型", größe=1),
    "a layer number with many tensors around": add("model.layers.0.mlp.up_proj.lora_scale", "F32", (1,), bytes(4)),
}


def without_metadata(m: Any) -> bytes:
    raw = (m / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8 : 8 + length])
    del entries["__metadata__"]
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + raw[8 + length :]


def header(path: Path) -> bytes:
    raw = path.read_bytes()
    return raw[: 8 + int.from_bytes(raw[:8], "little")]


def check(repair: Callable[..., Any], source: Path, out: Path) -> None:
    """Repaired, verified, every header kept, and every file readable by safetensors."""
    code, shown, said = repair(source)
    assert code == 0 and "wrote" in shown, said
    assert main(["verify", str(out), "--against", str(source), "--format", "json"]) == 0
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert files
    for file in files:
        assert header(out / file) == header(source / file)
        deserialize((out / file).read_bytes())


@pytest.mark.parametrize("case", LEGAL)
def test_repaired(case: str, model: Any, repair: Callable[..., Any], tmp_path: Path) -> None:
    LEGAL[case](model)
    check(repair, model.path, tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["with space", "größe 模型", "-o", "a'b\"c", "new\nline", "a+b", "x" * 200, b"\xff\xfe"]
)
def test_paths(name: str | bytes, model: Any, repair: Callable[..., Any], tmp_path: Path) -> None:
    place = tmp_path / os.fsdecode(name)
    place.mkdir()
    shutil.move(model.path, place / os.fsdecode(name))
    check(repair, place / os.fsdecode(name), tmp_path / "out")


@pytest.mark.parametrize("name", ["with space", "größe 模型", "-o", "new\nline", "x" * 200, b"\xff\xfe"])
@pytest.mark.parametrize("form", ["human", "json"])
def test_out_paths(name: str | bytes, form: str, model: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / os.fsdecode(name) / "deep" / os.fsdecode(name)
    arguments = [
        "repair",
        str(model.path),
        "--method",
        "random",
        "--ratio",
        "0.5",
        "--group",
        "row",
        "-o",
        str(out),
        "--format",
        form,
    ]
    assert main(arguments) == 0
    shown = capfd.readouterr().out
    assert form == "human" or Path(json.loads(shown)["out"]) == out
    assert main(["verify", str(out)]) == 0


def hub_cache(model: Any, root: Path, shared: bool) -> Path:
    """The model as huggingface_hub keeps it; `shared`: as its version 2 does, blobs being links into a common store."""
    repository = root / "models--org--model"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    for directory in (snapshot, blobs):
        directory.mkdir(parents=True)
    for at, path in enumerate(sorted(model.path.iterdir())):
        digest, other = hashlib.sha256(path.read_bytes()).hexdigest(), f"{at:02x}" * 32
        blob = blobs / digest
        if shared:  # where another hash of the content is the name
            stored = root / "blobs" / other[:2] / other
            stored.parent.mkdir(parents=True)
            path.rename(stored)
            blob.symlink_to(os.path.relpath(stored, blobs))
        else:
            path.rename(blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{digest}")
    return snapshot


@pytest.mark.parametrize("shared", [False, True])
def test_hub_cache(shared: bool, model: Any, repair: Callable[..., Any], tmp_path: Path) -> None:
    model.sharded()
    model.write("tokenizer.json", b"{}")
    snapshot = hub_cache(model, tmp_path / "hub", shared)
    check(repair, snapshot, tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


_WRITES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
_WRITES |= {"os.utime", "os.chown", "os.setxattr"}
_watched: list[tuple[Path, list[str]]] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched or not (event in _WRITES or event == "open"):
        return
    root, found = _watched[-1]
    changes = event in _WRITES or bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
    names = [os.fsdecode(a) for a in arguments[:2] if isinstance(a, str | bytes | os.PathLike)]
    if changes and any(Path(os.path.abspath(name)).is_relative_to(root) for name in names):
        found.append(f"{event} {names}")


@pytest.fixture(scope="module")
def audited() -> Iterator[None]:
    sys.addaudithook(_watch)  # can never be taken away again, so it does nothing while nothing is watched
    yield


def test_read_only_input(model: Any, repair: Callable[..., Any], tmp_path: Path, audited: None) -> None:
    """Nothing is opened for writing, made, renamed or removed in the input; root would be let through by its mode bits."""
    model.sharded()
    for path in model.path.iterdir():
        path.chmod(0o444)
    model.path.chmod(0o555)
    found: list[str] = []
    _watched.append((model.path, found))
    try:
        check(repair, model.path, tmp_path / "out")
    finally:
        _watched.pop()
        model.path.chmod(0o755)
    assert not found


def test_the_watch_sees_a_write(tmp_path: Path, audited: None) -> None:
    found: list[str] = []
    _watched.append((tmp_path, found))
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "a").rename(tmp_path / "b")
    _watched.pop()
    assert [line.split()[0] for line in found] == ["open", "os.rename"]


def test_three_thousand_tensors(model: Any, repair: Callable[..., Any], tmp_path: Path) -> None:
    for i in range(3000):
        model.tensors[f"buffer.{i}"] = ("U8", (1,), b"x")
    model.single()
    check(repair, model.path, tmp_path / "out")


CALIBRATED = ("no metadata", "tensors in another order than the data", "a tensor without an entry", "a scalar", "a scalar integer",
              "an integer buffer", "a boolean mask", "a complex buffer", "double precision", "four dtypes", "a name with a slash",
              "a name that is empty", "two shards", "a matrix of zeros", "a layer number with many tensors around")  # fmt: skip


@pytest.mark.parametrize("case", CALIBRATED)
def test_calibrated(case: str, model: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The same oddities where a model is run: its statistics are those of the model as save_pretrained writes it."""
    import numpy
    from safetensors.numpy import load_file, save_file

    ids = numpy.array([[1, 2, 3], [4, 1, 2]])
    save_file({"input_ids": ids, "attention_mask": numpy.ones_like(ids)}, tmp_path / "rows.safetensors")
    for name, change in (("plain", lambda m: None), ("odd", LEGAL[case])):
        change(model)
        given = ["stats", str(model.path), "--data", str(tmp_path / "rows.safetensors"), "-o", str(tmp_path / name)]
        assert main(given) == 0, capfd.readouterr().err
    plain, odd = load_file(tmp_path / "plain"), load_file(tmp_path / "odd")
    assert plain.keys() == odd.keys()
    if case != "a matrix of zeros":
        assert all(numpy.array_equal(plain[name], odd[name]) for name in plain)
