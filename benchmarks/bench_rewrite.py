"""Repair a synthetic sharded checkpoint of 2 GB with given statistics: CPU time and memory, beside `cp` and load + save.

    python benchmarks/bench_rewrite.py            # some minutes, 7 GB of disk under --directory
    python benchmarks/bench_rewrite.py --smoke    # a second, 20 MB

Every row runs in a process of its own. CPU time is net of the imports; memory is the peak of anonymous memory above
what the process held after its imports. Prints one JSON line a row, then a table.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

WEIGHT = {"target": "weight", "ratio": 0.1, "group": "row"}
MATRIX = {"target": "weight", "ratio": 0.1, "group": "matrix"}
DELTA = {"target": "delta", "ratio": 0.25, "group": "row"}
# Row -> (what it is, options, how it writes): "whole" as a user gets it, "unverified" without the second reading, "plain"
# without digests too: no manifest, only the edited files.
ROWS: dict[str, tuple[str, dict, str]] = {
    "cp": ("copy of the files", {}, ""),
    "load-save": ("safetensors load + save", {}, ""),
    "weight-plain": ("antidote, weight, per row 0.1, no digests", WEIGHT, "plain"),
    "weight-unverified": ("the same with digests and manifest", WEIGHT, "unverified"),
    "weight": ("the same, read again after writing", WEIGHT, "whole"),
    "matrix-plain": ("antidote, weight, per matrix 0.1, no digests", MATRIX, "plain"),
    "matrix": ("the same, whole", MATRIX, "whole"),
    "delta-plain": ("antidote, delta, per row 0.25, no digests", DELTA, "plain"),
    "delta-unverified": ("the same with digests and manifest", DELTA, "unverified"),
    "delta": ("the same, read again after writing", DELTA, "whole"),
}


def build(root: Path, hidden: int, middle: int, layers: int) -> None:
    """Tuned and aligned llama-shaped checkpoints in bf16, two layers a shard, and statistics for both."""
    import numpy
    import torch
    from safetensors.torch import save_file

    from weightguard.checkpoint.writer import safetensors_bytes

    square = {f"self_attn.{n}_proj": (hidden, hidden) for n in "qkvo"}
    gated = {"mlp.gate_proj": (middle, hidden), "mlp.up_proj": (middle, hidden), "mlp.down_proj": (hidden, middle)}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": layers,
              "hidden_size": hidden, "intermediate_size": middle, "num_attention_heads": 32, "vocab_size": 1000,
              "tie_word_embeddings": True}  # fmt: skip
    sums = {}
    for salt, name in enumerate(("aligned", "tuned")):
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(config))
        weight_map, total = {}, 0
        for first in range(0, layers, 2):
            generator = torch.Generator().manual_seed(first)
            shard = {}
            for layer in range(first, min(first + 2, layers)):
                for path, shape in (square | gated).items():
                    tensor = f"model.layers.{layer}.{path}.weight"
                    shard[tensor] = (torch.randn(shape, generator=generator) * (1 + 0.01 * salt)).to(torch.bfloat16)
                    sums[tensor] = numpy.arange(1.0, shape[1] + 1)
                for path in ("input_layernorm", "post_attention_layernorm"):
                    shard[f"model.layers.{layer}.{path}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
            if first == 0:
                shard["model.embed_tokens.weight"] = torch.randn(1000, hidden, generator=generator).to(torch.bfloat16)
                shard["model.norm.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
            file = f"model-{first // 2 + 1:05}-of-{(layers + 1) // 2:05}.safetensors"
            save_file(shard, root / name / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(shard, file)
            total += sum(t.nbytes for t in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (root / name / "model.safetensors.index.json").write_text(json.dumps(index))
    said = {
        "format": 1,
        "counted_tokens": 100,
        "tokens": "all",
        "data": {"source": "synthetic", "sha256": "", "rows": 1},
    }
    (root / "stats").write_bytes(safetensors_bytes(sums, {"weightguard_statistics": json.dumps(said)}))


class PeakMemory:
    """Peak of RssAnon in bytes while the block runs, sampled every two milliseconds, above its value at the start.

    spent: seconds of CPU that the sampling itself took.
    """

    def __enter__(self) -> PeakMemory:
        self.start = self.peak = _anonymous()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.peak = max(self.peak, _anonymous())
        self.spent = time.thread_time()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def above(self) -> int:
        return self.peak - self.start


def _anonymous() -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024


def work(row: str, root: Path, out: Path) -> None:
    if row == "load-save":
        from safetensors.torch import load_file, save_file

        out.mkdir()
        for file in sorted((root / "tuned").glob("*.safetensors")):
            save_file(load_file(file), out / file.name)
        return
    from weightguard.api import repair

    _, options, how = ROWS[row]
    if options["target"] == "delta":
        options = {**options, "aligned": str(root / "aligned")}
    given = {"method": "antidote", "stats": root / "stats", "offline": True, **options}
    if how == "plain":
        _without_digests(root, out, given)
        return
    repair(str(root / "tuned"), out=out, verify_write=how == "whole", **given)


def _without_digests(root: Path, out: Path, given: dict) -> None:
    from weightguard.api import repair
    from weightguard.api.subject import open_subject
    from weightguard.rewrite.stream import write_weights

    plan = repair(str(root / "tuned"), dry_run=True, **given).plan
    sources = open_subject(str(root / "tuned"), given.get("aligned"), offline=True).sources(given["target"])
    out.mkdir()
    write_weights(plan, sources, out, lambda _: None, hashing=False)


def child(row: str, root: Path, out: Path) -> None:
    """One row in this process: print its figures as JSON."""
    import torch

    import weightguard.api.proving
    import weightguard.api.repairing
    import weightguard.rewrite
    import weightguard.statistics.norms  # noqa: F401

    torch.set_num_threads(1)
    with PeakMemory() as memory:
        cpu, wall = time.process_time(), time.monotonic()
        work(row, root, out)
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    cpu -= memory.spent
    print(json.dumps({"row": row, "cpu_s": cpu, "wall_s": wall, "anonymous_mb": memory.above / 1e6}))


def measured(row: str, root: Path) -> dict:
    out = root / "out"
    shutil.rmtree(out, ignore_errors=True)
    if row == "cp":
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall = time.monotonic()
        subprocess.run(["cp", "-r", "--reflink=never", root / "tuned", out], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"row": row, "cpu_s": cpu, "wall_s": time.monotonic() - wall, "anonymous_mb": 0.0}
    done = subprocess.run(
        [sys.executable, __file__, "--child", row, "--directory", root], check=True, stdout=subprocess.PIPE
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=5, help="0.4 GB each")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--child", choices=ROWS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.directory, options.directory / "out")
        return
    root = Path(tempfile.mkdtemp(dir=options.directory))
    try:
        build(root, *((256, 688, 2) if options.smoke else (4096, 11008, options.layers)))
        report(root, 1 if options.smoke else options.rounds)
    finally:
        shutil.rmtree(root)


def report(root: Path, rounds: int) -> None:
    largest = max(t.nbytes for t in _tensors(root))
    size = sum(t.nbytes for t in _tensors(root))
    bound = 2 * largest / 1e6 + 64
    print(f"checkpoint {size / 1e9:.2f} GB, largest tensor {largest / 1e6:.0f} MB, memory bound {bound:.0f} MB")
    turns = [
        {row: _said(measured(row, root)) for row in ROWS} for _ in range(rounds)
    ]  # in turn, since the machine's mood changes
    rows = {row: min((turn[row] for turn in turns), key=lambda found: found["cpu_s"]) for row in ROWS}
    print(f"best of {rounds:<34} {'CPU s':>8} {'x cp':>7} {'wall s':>8} {'anonymous MB':>13}")
    for name, row in rows.items():
        ratio = row["cpu_s"] / rows["cp"]["cpu_s"] if rows["cp"]["cpu_s"] else float("nan")
        print(f"{ROWS[name][0]:42} {row['cpu_s']:8.2f} {ratio:7.1f} {row['wall_s']:8.2f} {row['anonymous_mb']:13.0f}")
    for kind in ("weight", "delta"):
        more = rows[f"{kind}-unverified"]["cpu_s"] - rows[f"{kind}-plain"]["cpu_s"]
        print(f"digests and manifest, {kind}: {more / (size / 1e9):.2f} s of CPU per GB of the checkpoint")
    over = [name for name, row in rows.items() if ROWS[name][1] and row["anonymous_mb"] > bound]
    print("memory bound: " + ("kept by every repair" if not over else f"EXCEEDED by {', '.join(over)}"))


def _said(row: dict) -> dict:
    print(json.dumps(row), file=sys.stderr)
    return row


def _tensors(root: Path) -> list:
    from weightguard.checkpoint import open_checkpoint, resolve

    return list(open_checkpoint(resolve(str(root / "tuned"))).tensors.values())


if __name__ == "__main__":
    main()
