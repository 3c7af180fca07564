"""Seconds and memory of refit on a synthetic checkpoint in bf16, 100 + 100 pre-tokenised rows.

    python benchmarks/bench_refit.py --hidden 2048 --middle 5632 --layers 22 --tokens 32    # 1.0 billion parameters
    python benchmarks/bench_refit.py --layers 1                                             # one such layer
    python benchmarks/bench_refit.py --smoke

Prints CPU seconds per billion parameters of the decoder's linears, of planning alone (`planned`) and with OUT written and
read again, and the peak of anonymous memory above what the process held after its imports, beside the size of one layer in
float32 and of the hidden states. A line a layer goes to stderr, so that a run that is stopped has said something.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path


def build(folder: Path, asked: argparse.Namespace) -> dict[str, str]:
    """`aligned` and `tuned`, and rows of both roles."""
    import torch
    from safetensors.torch import save_file

    square = {f"self_attn.{n}_proj": (asked.hidden, asked.hidden) for n in "qkvo"}
    gated = {"mlp.gate_proj": (asked.middle, asked.hidden), "mlp.up_proj": (asked.middle, asked.hidden),
             "mlp.down_proj": (asked.hidden, asked.middle)}  # fmt: skip
    norms = {"input_layernorm": (asked.hidden,), "post_attention_layernorm": (asked.hidden,)}
    shapes = {
        f"model.layers.{i}.{path}.weight": shape
        for i in range(asked.layers)
        for path, shape in (square | gated | norms).items()
    }
    shapes |= {"model.embed_tokens.weight": (1000, asked.hidden), "model.norm.weight": (asked.hidden,)}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": asked.layers,
              "hidden_size": asked.hidden, "intermediate_size": asked.middle, "num_attention_heads": 16, "vocab_size": 1000,
              "tie_word_embeddings": True}  # fmt: skip
    made = torch.Generator().manual_seed(0)
    for name, spread in (("aligned", 0.0), ("tuned", 0.002)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
        made.manual_seed(0)
        tensors = {key: _drawn(shape, made, spread) for key, shape in shapes.items()}
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
    return {role: _rows(folder / f"{role}.safetensors", seed, asked) for seed, role in enumerate(("safety", "benign"))}


def _drawn(shape, made, spread: float):
    import torch

    first = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=made) * shape[1] ** -0.5
    second = torch.Generator().manual_seed(int(first.flatten()[0].abs() * 1e6))
    return (first + spread * torch.randn(shape, generator=second)).to(torch.bfloat16)


def _rows(path: Path, seed: int, asked: argparse.Namespace) -> str:
    import torch
    from safetensors.torch import save_file

    ids = torch.randint(1, 1000, (asked.rows, asked.tokens), generator=torch.Generator().manual_seed(seed))
    labels = ids.masked_fill(torch.arange(asked.tokens) < asked.tokens // 2, -100)
    save_file({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}, path)
    return str(path)


def _anonymous() -> int:
    """Bytes of anonymous memory of this process now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


class Peak:
    """The most anonymous memory that was seen, looked at every 20 ms while open."""

    def __enter__(self) -> Peak:
        self.most, self._over = _anonymous(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self.most = max(self.most, _anonymous())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("hidden", 2048),
        ("middle", 5632),
        ("layers", 22),
        ("rows", 100),
        ("tokens", 32),
        ("threads", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    if asked.smoke:
        asked.hidden, asked.middle, asked.layers, asked.rows, asked.tokens = 64, 160, 2, 5, 8
    from transformers import LlamaForCausalLM  # noqa: F401  neither its seconds nor its memory are refit's

    import weightguard as wg

    with tempfile.TemporaryDirectory() as folder:
        files = build(Path(folder), asked)
        held, started = _anonymous(), (time.process_time(), time.perf_counter())
        layers: list[float] = []

        def progress(what: str, done: int, of: int) -> None:
            if what == "layers":
                layers.append(time.process_time() - started[0])
                print(f"layer {done} of {of}: {layers[-1]:.1f} s of CPU", file=sys.stderr, flush=True)

        with Peak() as peak:
            plan = wg.repair(Path(folder) / "tuned", method="refit", aligned=str(Path(folder) / "aligned"),
                             out=Path(folder) / "out", threads=asked.threads, progress=progress, **files).plan  # fmt: skip
        cpu, wall = time.process_time() - started[0], time.perf_counter() - started[1]
    linears = sum(said["shape"][0] * said["shape"][1] for said in plan.evidence.values())
    found = {
        "parameters": linears,
        "positions": 2 * asked.rows * asked.tokens,
        "cpu_seconds": round(cpu, 2),
        "wall_seconds": round(wall, 2),
        "planned_cpu_seconds": round(layers[-1], 2),
        "cpu_seconds_per_billion": round(cpu / linears * 1e9, 1),
        "planned_cpu_seconds_per_billion": round(layers[-1] / linears * 1e9, 1),
        "layer_float32_mb": round(4e-6 * linears / asked.layers, 1),
        "hidden_states_mb": round(4e-6 * 2 * asked.rows * asked.tokens * asked.hidden, 1),
        "anonymous_peak_mb": round((peak.most - held) / 1e6, 1),
        "max_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1),
        "solved": sorted({said["solved"] for said in plan.evidence.values()}),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
