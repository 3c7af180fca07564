"""Repair checkpoints several times larger than the memory they are given: Antidote with calibration, Safe LoRA, refit.

    python benchmarks/bench_memory.py            # some minutes, 3 GB of disk under --directory
    python benchmarks/bench_memory.py --smoke    # half a minute, 1 GB
    python benchmarks/bench_memory.py --wide     # every edited tensor larger than the limit; 4 GB of disk

Every row is a process of its own (--wide: they share one). Refit has twice the limit: it holds a layer of each of three models
and solves in float64. RLIMIT_DATA is what it held after its imports, the limit, and 48 MB
of addresses for the stacks of threads, which are counted though nobody touches them; --max-memory says the same to
weightguard. Memory is the peak of anonymous memory above what the imports left. The last column says whether statistics
and repaired weights are the bytes that come from the whole model in memory (safe-lora: from the same without a limit;
--wide: from every tensor edited in one piece). One JSON line a row on stderr, then a table.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

STACKS = 48 << 20
SMOKE = (384, 1056, (12, 48), 512, 72)
WIDE = (512, 270_000, 1, 32, 128)  # tensors of 276 MB
ROWS = {
    "whole": "stats with the whole model in memory",
    "stats": "stats",
    "antidote": "antidote, delta, per row 0.25",
    "safe-lora": "safe-lora, published C, every o",
    "verify": "verify the antidote",
    "verify-lora": "verify the safe-lora",
    "refit": "refit, every down, twice the limit",
}
WIDE_ROWS = {
    "by-row": "magnitude, delta, per row 0.25",
    "by-matrix": "magnitude, delta, per matrix 0.25",
    "verify-wide": "verify the second",
}


def build(root: Path, hidden: int, middle: int, layers: int, tokens: int) -> None:
    """Tuned, aligned and unaligned llama-shaped checkpoints in bf16, four layers a shard, and rows of token ids."""
    import numpy
    import torch
    from safetensors.numpy import save_file as save_arrays
    from safetensors.torch import save_file

    pool = (torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)) * 0.02).to(torch.bfloat16)
    square = {f"self_attn.{n}_proj": (hidden, hidden) for n in "qkvo"}
    gated = {"mlp.gate_proj": (middle, hidden), "mlp.up_proj": (middle, hidden), "mlp.down_proj": (hidden, middle)}
    norms = dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (hidden,))
    vocabulary = 1024
    outer = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": layers,
              "hidden_size": hidden, "intermediate_size": middle, "num_attention_heads": 8, "vocab_size": vocabulary,
              "num_key_value_heads": 8, "tie_word_embeddings": True}  # fmt: skip

    def values(shape: tuple[int, ...], salt: int) -> Any:
        size = 1
        for side in shape:
            size *= side
        taken = pool.roll(salt * 7919).repeat(-(-size // len(pool)))[:size].reshape(shape).clone()
        return taken if len(shape) == 2 else taken + 1

    for number, name in enumerate(("unaligned", "aligned", "tuned")):
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(config))
        weight_map: dict[str, str] = {}
        for first in range(0, layers, 4):
            paths = {f"model.layers.{at}.{path}.weight": shape for at in range(first, min(first + 4, layers))
                     for path, shape in (square | gated | norms).items()} | (outer if first == 0 else {})  # fmt: skip
            shard = {path: values(shape, first + at) for at, (path, shape) in enumerate(paths.items())}
            for at, tensor in enumerate(shard.values()):
                if tensor.dim() == 2:
                    tensor += 0.01 * number * values(tuple(tensor.shape), 100 * number + at)
            file = f"model-{first // 4 + 1:05}-of-{-(-layers // 4):05}.safetensors"
            save_file(shard, root / name / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(shard, file)
        (root / name / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": weight_map})
        )
    draw = numpy.random.default_rng(0)
    ids = draw.integers(1, vocabulary, (tokens // 32, 32))
    save_arrays({"input_ids": ids, "attention_mask": numpy.ones_like(ids)}, root / "rows.safetensors")


class PeakMemory:
    """Peak of RssAnon in bytes while the block runs, sampled every two milliseconds, above its value at the start."""

    def __enter__(self) -> PeakMemory:
        self.start = self.peak = of_process("RssAnon")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.peak = max(self.peak, of_process("RssAnon"))

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def of_process(what: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{what}:")[1].split()[0]) << 10


def arguments(row: str, root: Path) -> list[str]:
    """The command line of a row."""
    data = ["--threads", "1", "--offline"]
    match row:
        case "stats":
            return [
                "stats",
                str(root / "tuned"),
                "--data",
                str(root / "rows.safetensors"),
                "-o",
                str(root / "S"),
                *data,
            ]
        case "antidote":
            return ["repair", str(root / "tuned"), "--method", "antidote", "--aligned", str(root / "aligned"), "--ratio", "0.25",
                    "--harmful", str(root / "rows.safetensors"), "-o", str(root / "OUT"), *data]  # fmt: skip
        case "safe-lora":
            return ["repair", str(root / "tuned"), "--method", "safe-lora", "--aligned", str(root / "aligned"), "--scope", "o",
                    "--unaligned", str(root / "unaligned"), "--threshold", "1", "-o", str(root / "OUT2"), *data]  # fmt: skip
        case "refit":
            return ["repair", str(root / "tuned"), "--method", "refit", "--aligned", str(root / "aligned"), "--judge", "none",
                    "--safety", str(root / "rows.safetensors"), "--benign", str(root / "rows.safetensors"), "--scope", "down",
                    "-o", str(root / "OUT5"), *data]  # fmt: skip
        case "by-row" | "by-matrix":
            return ["repair", str(root / "tuned"), "--method", "magnitude", "--aligned", str(root / "aligned"), "--ratio", "0.25",
                    "--group", row.removeprefix("by-"), "-o", str(root / row), *data]  # fmt: skip
    out = {"verify": "OUT", "verify-lora": "OUT2", "verify-wide": "by-matrix"}[row]
    return ["verify", str(root / out), "--against", str(root / "tuned")]


def whole(root: Path) -> int:
    """Statistics as transformers and one forward of the whole model give them, written to `W`. Error: MemoryError."""
    from weightguard.api.collect import Running, encoded, facts_of
    from weightguard.api.subject import open_subject
    from weightguard.statistics.forward import input_square_sums
    from weightguard.statistics.loading import load_model, pinned_threads
    from weightguard.statistics.norms import InputNorms

    subject, running = open_subject(str(root / "tuned"), search=False), Running(threads=1)
    rows, _ = encoded(subject, str(root / "rows.safetensors"), "harmful", "all", None, running)
    with pinned_threads(1):
        model = load_model(subject.model)
        sums = input_square_sums(model, subject.model.config, subject.named, rows.rows, lambda *_: None)
    (root / "W").write_bytes(InputNorms(sums, rows.counted_tokens, facts_of(rows, subject, running)).to_bytes())
    return 0


def child(rows: list[str], root: Path, limit: int) -> None:
    """Rows in this process, one after the other: print their figures as JSON."""
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers import conversion_mapping  # noqa: F401

    import weightguard.api.repairing
    import weightguard.rewrite
    import weightguard.statistics.room  # noqa: F401
    from weightguard.cli.main import main

    if limit:
        size = of_process("VmData") + limit + STACKS
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    held = of_process("RssAnon")
    for row in rows:
        said, code = io.StringIO(), 0
        with PeakMemory() as memory, contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            cpu, wall = time.process_time(), time.monotonic()
            if row == "whole":
                with contextlib.suppress(MemoryError):
                    code = 5
                    code = whole(root)
            else:
                given = ["--max-memory", str(held + limit)] if limit and not row.startswith("verify") else []
                code = main([*arguments(row, root), *given])
            cpu, wall = time.process_time() - cpu, time.monotonic() - wall
        found = {"row": row, "code": code, "cpu_s": cpu, "wall_s": wall, "peak_mb": (memory.peak - held) / 1e6}
        print(json.dumps({**found, "said": said.getvalue().strip().splitlines()[-1:]}), flush=True)


def measured(rows: list[str], root: Path, limit: int) -> list[dict[str, Any]]:
    command = [sys.executable, __file__, "--child", *rows, "--directory", str(root), "--limit", str(limit)]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()
    return [json.loads(line) for line in lines[-len(rows) :]]


def digests(directory: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(directory.glob("*.safetensors"))
    }


def same_as_whole(root: Path) -> dict[str, bool]:
    """By row: whether it gave what statistics of the whole model in memory give."""
    from safetensors.numpy import load_file

    import weightguard as wg

    if not (root / "S").exists() or not (root / "OUT").exists():
        return {}
    assert measured(["whole"], root, 0)[0]["code"] == 0
    ours, theirs = load_file(root / "S"), load_file(root / "W")
    wg.repair(str(root / "tuned"), method="safe-lora", aligned=str(root / "aligned"), unaligned=str(root / "unaligned"),
              scope="o", threshold="1", out=root / "OUT4", offline=True, threads=1)  # fmt: skip
    wg.repair(str(root / "tuned"), method="antidote", aligned=str(root / "aligned"), ratio="0.25", stats=root / "W",
              out=root / "OUT3", offline=True, threads=1)  # fmt: skip
    given = {role: str(root / "rows.safetensors") for role in ("safety", "benign")}
    wg.repair(str(root / "tuned"), method="refit", aligned=str(root / "aligned"), judge="none", scope="down", out=root / "OUT6",
              offline=True, threads=1, **given)  # fmt: skip
    return {
        "stats": ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours),
        "antidote": digests(root / "OUT") == digests(root / "OUT3"),
        "safe-lora": digests(root / "OUT2") == digests(root / "OUT4"),
        "refit": digests(root / "OUT5") == digests(root / "OUT6"),
    }


def same_in_one_piece(root: Path) -> dict[str, bool]:
    """By row of WIDE_ROWS: whether it gave what edits of whole tensors give."""
    import weightguard as wg
    from weightguard import weights

    weights.BLOCK = weights.WHOLE = 1 << 40
    found = {}
    for row in ("by-row", "by-matrix"):
        shutil.rmtree(root / "whole", ignore_errors=True)
        wg.repair(str(root / "tuned"), method="magnitude", aligned=str(root / "aligned"), ratio="0.25",
                  group=row.removeprefix("by-"), out=root / "whole", offline=True, threads=1)  # fmt: skip
        found[row] = digests(root / row) == digests(root / "whole")
    return found


def report(
    sizes: tuple[int, int, int, int], limit: int, place: Path | None, wide: bool = False
) -> list[dict[str, Any]]:
    """All rows over a checkpoint of these sizes: hidden, middle, layers, tokens."""
    root = Path(tempfile.mkdtemp(dir=place))
    try:
        build(root, *sizes)
        stored = sum(file.stat().st_size for file in (root / "tuned").glob("*.safetensors"))
        if wide:
            found, same = measured([*WIDE_ROWS], root, limit), same_in_one_piece(root)
        else:
            found = [line for row in ROWS for line in measured([row], root, limit * (2 if row == "refit" else 1))]
            same = same_as_whole(root)
    finally:
        shutil.rmtree(root)
    for row in found:
        row |= {"layers": sizes[2], "stored_mb": stored / 1e6, "limit_mb": limit / 1e6, "same": same.get(row["row"])}
        print(json.dumps(row), file=sys.stderr)
    return found


def show(found: list[dict[str, Any]]) -> None:
    first = found[0]
    print(f"{first['layers']} layers, {first['stored_mb']:.0f} MB in bf16, {2 * first['stored_mb']:.0f} MB in float32, "
          f"limit {first['limit_mb']:.0f} MB above the imports")  # fmt: skip
    print(f"{'':40} {'CPU s':>8} {'wall s':>8} {'peak MB':>9} {'exit':>6}  same as in memory")
    for row in found:
        code = "no room" if row["row"] == "whole" and row["code"] else str(row["code"])
        same = {None: "-", True: "yes", False: "NO"}[row["same"]]
        print(
            f"{(ROWS | WIDE_ROWS)[row['row']]:40} {row['cpu_s']:8.1f} {row['wall_s']:8.1f} {row['peak_mb']:9.1f} {code:>7}  {same}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--wide", action="store_true")
    parser.add_argument("--child", nargs="+", choices=ROWS | WIDE_ROWS)
    parser.add_argument("--limit", type=int, default=0)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.directory, options.limit)
        return
    if options.wide:
        show(report(WIDE[:4], WIDE[4] * 10**6, options.directory, wide=True))
        return
    hidden, middle, depths, tokens, limit = SMOKE if options.smoke else (512, 1408, (24, 96), 1024, 96)
    for layers in depths:
        show(report((hidden, middle, layers, tokens), limit * 10**6, options.directory))


if __name__ == "__main__":
    main()
