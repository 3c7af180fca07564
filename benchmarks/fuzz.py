"""Coverage-guided fuzzing of the readers of strangers' files, with atheris, one target at a time.

    python -m venv fuzz && fuzz/bin/pip install atheris -e .
    fuzz/bin/python benchmarks/fuzz.py header -max_total_time=600      # or index, config, policy, data
    fuzz/bin/python benchmarks/fuzz.py header crash-0123...            # look at one input again

Arguments after the target are libFuzzer's. An input is a finding when the reader raises anything but one line of its
own, takes more than a second of CPU, or is accepted though an independent reading of the rules refuses it. What was found
to lead somewhere stays in a temporary folder.
"""

from __future__ import annotations

import json
import os
import re
import struct
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

try:
    import atheris
except ModuleNotFoundError:
    sys.exit(f"{__file__}: needs atheris, which is not installed; the lines at the top of the file say how")

with atheris.instrument_imports(include=["weightguard"]):
    from weightguard import data
    from weightguard.checkpoint import decoder_linears, open_checkpoint, resolve
    from weightguard.checkpoint.header import read_header
    from weightguard.checkpoint.layout import read_layout
    from weightguard.errors import WeightguardError
    from weightguard.verdict.policy import Policy

MEMORY = "/dev/shm"  # hundreds of files a second: not on a disk where there is a file system in memory
PLACE = Path(tempfile.mkdtemp(prefix="weightguard-fuzz-", dir=MEMORY if os.path.isdir(MEMORY) else None))
SLOW = 1.0  # seconds of CPU
SHAPES = {
    "model.embed_tokens.weight": (5, 4), "model.norm.weight": (4,),
    **{f"model.layers.0.self_attn.{x}_proj.weight": (4, 4) for x in "qkvo"},
    **{f"model.layers.0.mlp.{x}_proj.weight": (4, 4) for x in ("gate", "up", "down")},
    **{f"model.layers.0.{x}_layernorm.weight": (4,) for x in ("input", "post_attention")},
}  # fmt: skip
CONFIG = {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 4, "intermediate_size": 4, "vocab_size": 5,
          "num_attention_heads": 2, "tie_word_embeddings": True}  # fmt: skip
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def safetensors(names: list[str]) -> bytes:
    """A file of zeros with these tensors."""
    entries, end = {}, 0
    for name in names:
        size = 4
        for side in SHAPES[name]:
            size *= side
        entries[name] = {"dtype": "F32", "shape": list(SHAPES[name]), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def strict_json(raw: bytes) -> Any:
    """json.loads, which fails on what the rules forbid and json lets through."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs), "a key twice"
        return dict(pairs)

    return json.loads(raw.decode("utf-8"), object_pairs_hook=unique)


def header(raw: bytes) -> None:
    (PLACE / "x.safetensors").write_bytes(raw)
    descriptor = os.open(PLACE / "x.safetensors", os.O_RDONLY)
    try:
        found = read_header(descriptor, "x.safetensors")
    finally:
        os.close(descriptor)
    # accepted: the tensors tile the data, and are what a second parser says
    length = struct.unpack("<Q", raw[:8])[0]
    said = {name: entry for name, entry in strict_json(raw[8 : 8 + length]).items() if name != "__metadata__"}
    ends = sorted((info.start, info.end) for info in found.tensors.values())
    assert set(found.tensors) == set(said)
    assert all(left[1] == right[0] for left, right in pairwise(ends))
    assert (ends[0][0], ends[-1][1]) == (8 + length, len(raw)) if ends else 8 + length == len(raw)
    assert all([info.start - 8 - length, info.end - 8 - length] == said[name]["data_offsets"]
               for name, info in found.tensors.items())  # fmt: skip


def index(raw: bytes) -> None:
    directory = PLACE / "index"
    (directory / "model.safetensors.index.json").write_bytes(raw)
    read_layout(directory)
    names = list(SHAPES)
    wanted = {name: SHARDS[at >= 6] for at, name in enumerate(names)}
    assert strict_json(raw)["weight_map"] == wanted, "an index that is not that of the shards"


def config(raw: bytes) -> None:
    (PLACE / "model" / "config.json").write_bytes(raw)
    found = open_checkpoint(resolve(str(PLACE / "model")))
    assert found.config == strict_json(raw)
    linears = decoder_linears(found.config, found.tensors)
    assert len(linears) == 7 and found.config["num_hidden_layers"] == 1, "another model than that of the tensors"


def policy(raw: bytes) -> None:
    found = Policy.parse(raw, "policy.toml")
    said = tomllib.loads(raw.decode())
    assert said["format"] == 1 and len(found.limits) == len(said["limits"]) > 0


def rows(raw: bytes) -> None:
    suffix = (".jsonl", ".json", ".csv", ".txt", ".jsonl.gz", ".parquet")[raw[0] % 6] if raw else ".jsonl"
    path = PLACE / f"rows{suffix}"
    path.write_bytes(raw[1:])
    found = data.read_rows(str(path))
    assert found.rows and all(row.prompt or row.text or row.messages for row in found.rows)


SHIPPED = (Path(__file__).parents[1] / "weightguard" / "verdict" / "policy.toml").read_bytes()
TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "header": (header, [safetensors(list(SHAPES)), safetensors([])]),
    "index": (index, [json.dumps({"metadata": {"total_size": 1}, "weight_map": {
        name: SHARDS[at >= 6] for at, name in enumerate(SHAPES)}}).encode()]),
    "config": (config, [json.dumps(CONFIG).encode()]),
    "policy": (policy, [SHIPPED]),
    "data": (rows, [b'\0{"prompt": "p", "response": "r"}\n', b'\1[{"messages": [{"role": "user", "content": "x"}]}]',
                    b"\2prompt,response\np,r\n", b"\3a\nb\n"]),
}  # fmt: skip


def watched(target: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """The target, for which everything but an own, short, one-line error within a second is a finding."""

    def run(raw: bytes) -> None:
        begin = time.process_time()
        try:
            target(raw)
        except WeightguardError as error:
            assert "\n" not in str(error) and 0 < len(str(error)) < 4000, "a message of several lines"
        spent = time.process_time() - begin
        assert spent < SLOW, f"took {spent:.1f} s"

    return run


TOKEN = re.compile(rb'-?\d+|"[^"]*"|true|false|null')
EDGES = (b"0", b"-1", b"1", b"-0", b"1.0", b"1e999", b"NaN", b"9223372036854775807", b"18446744073709551616", b"1" * 5000, b"null",
         b"true", b"[]", b"{}", b'""', b'".."', b'"/etc/passwd"', b'"\\ud800"', b"[" * 70, b'{"a":1,"a":2}')  # fmt: skip


def mutated(raw: bytes, max_size: int, seed: int) -> bytes:
    """libFuzzer's own change, or one value exchanged for a hard one; of a header the length is set right again, mostly."""
    random = Random(seed)
    length = struct.unpack("<Q", raw[:8])[0] if sys.argv[0] == "header" and len(raw) > 8 else None
    inside = length is not None and length <= len(raw) - 8 and random.random() < 0.8
    body, rest = (raw[8 : 8 + length], raw[8 + length :]) if inside and length is not None else (raw, b"")
    tokens = list(TOKEN.finditer(body))
    if tokens and random.random() < 0.5:
        token = random.choice(tokens)
        other = random.choice([*EDGES, random.choice(tokens).group()])
        body = body[: token.start()] + other + body[token.end() :]
    else:
        body = atheris.Mutate(body, max(len(body) + 16, 64))
    return ((struct.pack("<Q", len(body)) if inside else b"") + body + rest)[:max_size]


def main() -> None:
    arguments = list(sys.argv)
    name = arguments.pop(1) if len(arguments) > 1 else ""
    if name not in TARGETS:
        raise SystemExit(__doc__)
    target, seeds = TARGETS[name]
    names = list(SHAPES)
    for directory in ("index", "model", name):
        (PLACE / directory).mkdir(exist_ok=True)
    (PLACE / "model" / "model.safetensors").write_bytes(safetensors(names))
    for file, part in zip(SHARDS, (names[:6], names[6:]), strict=True):
        (PLACE / "index" / file).write_bytes(safetensors(part))
    corpus = PLACE / f"corpus-{name}"
    corpus.mkdir()
    for at, seed in enumerate(seeds):
        target(seed)  # a seed is a file that is in order
        (corpus / str(at)).write_bytes(seed)
    inputs = [each for each in arguments[1:] if not each.startswith("-")]
    sys.argv[0] = name
    atheris.Setup([*arguments, *([] if inputs else [str(corpus)])], watched(target), custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
