"""A pico model written by hand, byte by byte, so that every byte can be made wrong; and what must hold when it is."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from weightguard.cli.main import main

HIDDEN, MIDDLE, LAYERS, VOCABULARY = 4, 6, 1, 5
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": MIDDLE,
    "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": VOCABULARY,
    "tie_word_embeddings": True,
}  # fmt: skip
_LAYER = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 2, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (MIDDLE, HIDDEN),
    "mlp.up_proj": (MIDDLE, HIDDEN), "mlp.down_proj": (HIDDEN, MIDDLE), "input_layernorm": (HIDDEN,),
    "post_attention_layernorm": (HIDDEN,),
}  # fmt: skip
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
    **{f"model.layers.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in _LAYER.items()},
    "model.norm.weight": (HIDDEN,),
}
# dtype -> (bytes of one entry, a few finite values as they lie in the file)
ENTRIES = {
    "F32": [b"\0\0\x80\x3f", b"\0\0\0\xbf", b"\0\0\0\0"],
    "F16": [b"\0\x3c", b"\0\xb8", b"\0\0"],
    "BF16": [b"\x80\x3f", b"\0\xbf", b"\0\0"],
    "F64": [b"\0\0\0\0\0\0\xf0\x3f", b"\0\0\0\0\0\0\xe0\xbf", bytes(8)],
    "I8": [b"\1", b"\xff", b"\0"],
    "F8_E4M3": [b"\x38", b"\xb0", b"\0"],
}
Tensor = tuple[str, tuple[int, ...], bytes]


def values(shape: tuple[int, ...], dtype: str = "F32") -> bytes:
    """Bytes of a tensor of ones, halves and zeros."""
    count = 1
    for size in shape:
        count *= size
    return b"".join(ENTRIES[dtype][i % 3] for i in range(count))


def safetensors(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """A file with these tensors, name -> (dtype, shape, bytes), one after the other."""
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    position = 0
    for name, (dtype, shape, data) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + len(data)]}
        position += len(data)
    text = json.dumps(entries, ensure_ascii=False).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values())


class Model:
    """A directory with a checkpoint that is in order, and the ways to put it out of order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, Tensor] = {name: ("F32", shape, values(shape)) for name, shape in SHAPES.items()}
        path.mkdir(parents=True)
        self.config()
        self.single()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def write(self, name: str, data: bytes | str | dict | list) -> None:
        """A file beside the weights, or instead of them: bytes, text, or JSON."""
        text = json.dumps(data) if isinstance(data, dict | list) else data
        self.remove(name)
        (self.path / name).parent.mkdir(exist_ok=True)
        (self.path / name).write_bytes(text.encode() if isinstance(text, str) else text)

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def config(self, **changes: Any) -> None:
        """config.json with some values changed; None takes a key out."""
        self.write("config.json", {k: v for k, v in {**CONFIG, **changes}.items() if v is not None})

    def single(self, **metadata: str) -> None:
        self.write("model.safetensors", safetensors(self.tensors, metadata or {"format": "pt"}))

    def header(self, text: bytes | str | dict, data: bytes = b"") -> None:
        """model.safetensors with this header, padded to 256 bytes, and this data behind it, which begins at byte 264."""
        raw = json.dumps(text).encode() if isinstance(text, dict) else text.encode() if isinstance(text, str) else text
        raw = raw.ljust(256)
        self.write("model.safetensors", len(raw).to_bytes(8, "little") + raw + data)

    def entry(self, name: str = "a", data: bytes = bytes(4), **changes: Any) -> None:
        """One tensor of four bytes, with some values of its entry changed."""
        said = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4], **changes}
        self.header({name: {key: value for key, value in said.items() if value != "-"}}, data)

    def pair(self, first: tuple[int, int], second: tuple[int, int], data: bytes = bytes(8)) -> None:
        """Two tensors, a and b, of bytes at these offsets."""
        ranges = {"a": first, "b": second}
        self.header(
            {n: {"dtype": "U8", "shape": [e - b], "data_offsets": [b, e]} for n, (b, e) in ranges.items()}, data
        )

    def tensor(self, name: str, dtype: str, shape: tuple[int, ...], data: bytes | None = None) -> None:
        """The model with one tensor exchanged or added."""
        self.tensors[name] = (dtype, shape, values(shape, dtype) if data is None else data)
        self.single()

    def sharded(self) -> None:
        """The same tensors in two shards, with an index."""
        names = list(self.tensors)
        self.remove("model.safetensors")
        for number, part in enumerate((names[:6], names[6:]), 1):
            self.write(shard(number), safetensors({name: self.tensors[name] for name in part}, {"format": "pt"}))
        self.index(lambda index: None)

    def index(self, change: Callable[[dict[str, Any]], object], **top: Any) -> None:
        """The index of `sharded` after `change` was at its weight_map, and with other top values."""
        names = list(self.tensors)
        weight_map: dict[str, Any] = {name: shard(1 if i < 6 else 2) for i, name in enumerate(names)}
        change(weight_map)
        size = sum(len(data) for _, _, data in self.tensors.values())
        said = {"metadata": {"total_size": size}, "weight_map": weight_map, **top}
        self.write("model.safetensors.index.json", said)

    def point(self, file: Any) -> None:
        """A sharded model whose index sends the last tensor to `file`."""
        self.sharded()
        self.index(lambda weight_map: weight_map.update({"model.norm.weight": file}))

    def link(self, name: str, target: str | Path) -> None:
        self.remove(name)
        (self.path / name).symlink_to(target)

    def directory(self, name: str) -> None:
        self.remove(name)
        (self.path / name).mkdir()

    def fifo(self, name: str) -> None:
        self.remove(name)
        os.mkfifo(self.path / name)


def shard(number: int) -> str:
    return f"model-{number:05}-of-00002.safetensors"


def _state(path: Path) -> tuple[Any, ...]:
    status = path.lstat()
    kind = status.st_mode
    if stat.S_ISLNK(kind):
        return kind, os.readlink(path)
    content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(kind) else ""
    return kind, status.st_mtime_ns, status.st_ino, content


def everything(root: Path) -> dict[str, tuple[Any, ...]]:
    """Every name below `root` with its kind, time and content."""
    return {str(path.relative_to(root)): _state(path) for path in sorted(root.rglob("*"))}


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """A valid pico model in `in/model`; `outside` lies beside it, for links that lead there."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "outside").write_bytes(b"outside")
    return Model(tmp_path / "in" / "model")


@pytest.fixture
def repair(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A function: exit code, stdout and stderr of a repair of `path` into `out`, run in this process."""

    def run(path: Path | str, *more: str) -> tuple[int, str, str]:
        capfd.readouterr()
        arguments = [
            "repair",
            str(path),
            "--method",
            "magnitude",
            "--ratio",
            "0.5",
            "--group",
            "row",
            "-o",
            str(tmp_path / "out"),
            *more,
        ]
        code = main(arguments)
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def refused(tmp_path: Path, repair: Callable[..., tuple[int, str, str]]) -> Iterator[Callable[..., None]]:
    """A function: repair must end in `code` and exactly this line, soon, with nothing written and nothing changed."""

    def check(path: Path | str, message: str, code: int = 3, *more: str) -> None:
        before, begin = everything(tmp_path), time.process_time()
        said = repair(path, *more)
        assert said == (code, "", f"weightguard: {message.replace('MODEL', str(path))}\n")
        assert time.process_time() - begin < 5  # CPU: the clock on the wall is the machine's
        assert everything(tmp_path) == before

    return check


def pytest_report_collectionfinish(items: list[pytest.Item]) -> str | list[str]:
    """How many hostile inputs there are, each named after what is wrong with it."""
    here = [item for item in items if item.path.parent == Path(__file__).parent]
    wrong = [
        item
        for item in here
        if item.name.startswith(("test_refused", "test_stopped", "test_references", "test_companions"))
    ]
    return f"hostile cases: {len(wrong)}" if wrong else []
