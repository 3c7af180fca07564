"""The pass of `inspect --base` over two synthetic checkpoints, beside reading both; and what the verdict adds.

    python benchmarks/bench_compare.py            # 1.2 GB in bf16, a minute or two
    python benchmarks/bench_compare.py --smoke    # a second

CPU seconds, one thread, files in the page cache. The figures are checked against plain float64 before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from weightguard.api.comparing import case_of
from weightguard.checkpoint import open_checkpoint, resolve
from weightguard.comparison.sides import Side
from weightguard.comparison.verdict import judge

FULL, SMOKE = (2048, 5632, 6), (64, 176, 2)  # hidden, intermediate, layers


def write(root: Path, hidden: int, middle: int, layers: int) -> None:
    """`base`, and `model` = base with an update of rank 16 and some noise."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden, hidden), "self_attn.v_proj": (hidden, hidden),
              "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (middle, hidden), "mlp.up_proj": (middle, hidden),
              "mlp.down_proj": (hidden, middle)}  # fmt: skip
    sides: dict[str, dict[str, torch.Tensor]] = {"base": {}, "model": {}}
    for name, (out, into) in ((f"model.layers.{at}.{n}.weight", s) for at in range(layers) for n, s in shapes.items()):
        weight = 0.02 * torch.randn(out, into, generator=draw)
        low = torch.randn(out, 16, generator=draw) @ torch.randn(16, into, generator=draw)
        sides["base"][name] = weight.bfloat16()
        noise = 4e-4 * torch.randn(out, into, generator=draw)
        sides["model"][name] = (weight + 5e-5 * low + noise).bfloat16()
    for side, tensors in sides.items():
        (root / side).mkdir()
        save_file(tensors, root / side / "model.safetensors")
        config = {"model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers}
        (root / side / "config.json").write_text(json.dumps(config))


def timed(call: Callable[[], object]) -> tuple[float, object]:
    """(CPU seconds, answer)."""
    start = time.process_time()
    answer = call()
    return time.process_time() - start, answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, *(SMOKE if given.smoke else FULL))
        base, model = (open_checkpoint(resolve(str(root / side))) for side in ("base", "model"))

        def read() -> None:
            for side in (base, model):
                for name in side.tensors:
                    side.read(name)

        def walk():
            return case_of(Side(model), Side(base), {}, lambda *_: None)[0]

        case = walk()
        change = case.changes[0]
        plain = (model.read(change.name).double() - base.read(change.name).double()).square().sum()
        assert math.isclose(change.update_norm**2, float(plain), rel_tol=1e-11)
        turns = [
            (timed(read)[0], timed(walk)[0]) for _ in range(3 if given.smoke else 7)
        ]  # side by side: machines drift
        reading, passing = (min(column) for column in zip(*turns, strict=True))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        size = sum(info.nbytes for side in (base, model) for info in side.tensors.values()) / 1e6
        print(f"{size:.0f} MB: reading both {reading:.2f} s, pass {passing:.2f} s ({passing / reading:.2f} times)")
        seconds, verdict = timed(lambda: judge(case))
        print(f"verdict {seconds:.1f} s more: {verdict.kind}; peak of the process before it {peak:.0f} MB")  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
