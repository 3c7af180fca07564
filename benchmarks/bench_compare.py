"""The pass of `inspect --base` over synthetic checkpoints, beside reading both; what the rest adds; and memory.

    python benchmarks/bench_compare.py             # 1.2 GB in bf16, a minute or two
    python benchmarks/bench_compare.py --memory    # half a GB a side with tensors of 210 MB, some minutes
    python benchmarks/bench_compare.py --smoke     # both, a few seconds

CPU seconds, one thread, files in the page cache. The figures are checked against plain float64 before anything is timed.
Memory is the peak of anonymous memory above what was there before, in a process of its own for every row.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bench_memory import PeakMemory
from safetensors.torch import save_file

from weightguard.api.comparing import _relevance, _spectra, case_of
from weightguard.checkpoint import open_checkpoint, resolve
from weightguard.comparison.sides import Side
from weightguard.comparison.verdict import judge

FULL, SMOKE = (2048, 5632, 6), (64, 176, 2)  # hidden, intermediate, layers
WIDE, NARROW = (1024, 102400), (64, 1760)  # largest tensors of 210 MB in bf16, and for --smoke
# What is asked for -> whether the checkpoints store their matrices transposed, as GPT-2 does.
ASKED = {"pass": False, "alignment": False, "transposed pass": True, "transposed alignment": True, "spectra": False,
         "verdict": False}  # fmt: skip


Shapes = dict[str, tuple[int, int]]


def write(root: Path, shapes: Shapes, model_type: str) -> None:
    """`base`, `model` = base with an update of rank 16 and some noise, and `before`, which is further from `base`."""
    draw = torch.Generator().manual_seed(0)
    sides: dict[str, dict[str, torch.Tensor]] = {"base": {}, "model": {}, "before": {}}
    for name, (out, into) in shapes.items():
        weight = 0.02 * torch.randn(out, into, generator=draw)
        low = torch.randn(out, 16, generator=draw) @ torch.randn(16, into, generator=draw)
        noise = 4e-4 * torch.randn(out, into, generator=draw)
        sides["base"][name] = weight.bfloat16()
        sides["model"][name] = (weight + 5e-5 * low + noise).bfloat16()
        sides["before"][name] = (weight + 2e-4 * low - noise).bfloat16()
    config = {"model_type": model_type, "num_hidden_layers": 1 + max(layers_of(shapes))}
    for side, tensors in sides.items():
        (root / side).mkdir(parents=True)
        save_file(tensors, root / side / "model.safetensors")
        (root / side / "config.json").write_text(json.dumps(config))


def layers_of(shapes: Shapes) -> set[int]:
    return {int(part) for name in shapes for part in name.split(".") if part.isdigit()}


def llama(hidden: int, middle: int, layers: int) -> Shapes:
    shapes = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden, hidden), "self_attn.v_proj": (hidden, hidden),
              "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (middle, hidden), "mlp.up_proj": (middle, hidden),
              "mlp.down_proj": (hidden, middle)}  # fmt: skip
    return {f"model.layers.{at}.{name}.weight": shape for at in range(layers) for name, shape in shapes.items()}


def large_down(hidden: int, middle: int) -> Shapes:
    """Two large tensors: an embedding and the last matrix of an MLP."""
    found = llama(hidden, middle // 16, 1)
    return found | {
        "model.embed_tokens.weight": (middle, hidden),
        "model.layers.0.mlp.down_proj.weight": (hidden, middle),
    }


def large_up(hidden: int, middle: int) -> Shapes:
    """As GPT-2 stores its matrices, (in, out): a large embedding, and the first matrix of an MLP."""
    shapes = {"attn.c_attn": (hidden, 3 * hidden), "attn.c_proj": (hidden, hidden), "mlp.c_fc": (hidden, middle),
              "mlp.c_proj": (middle // 16, hidden)}  # fmt: skip
    found = {f"transformer.h.0.{name}.weight": shape for name, shape in shapes.items()}
    return found | {"transformer.wte.weight": (middle, hidden)}


def peak(root: Path, what: str) -> None:
    """In this process: print the peak of anonymous memory in MB, above the imports, and CPU seconds."""
    torch.set_num_threads(1)
    sides = {name: Side(open_checkpoint(resolve(str(root / name)))) for name in ("base", "model", "before")}
    others = {"aligned": sides["base"], "unaligned": sides["before"]}
    with PeakMemory() as memory:
        start = time.process_time()
        case, _ = case_of(sides["model"], sides["base"], others, lambda *_: None)
        if "verdict" in what:
            judge(case)
        if "alignment" in what:
            _relevance(case, lambda *_: None)
        if "spectra" in what:
            _spectra(case, lambda *_: None)
        seconds = time.process_time() - start
    print(json.dumps({"peak": (memory.peak - memory.start) / 1e6, "seconds": seconds}))


def show_memory(folder: Path, hidden: int, middle: int) -> None:
    """A line for everything that can be asked for, the pass always with it."""
    roots = {False: folder / "llama", True: folder / "gpt2"}
    for transposed, root in roots.items():
        write(root, large_up(hidden, middle) if transposed else large_down(hidden, middle), root.name)
        infos = open_checkpoint(resolve(str(root / "base"))).tensors.values()
        print(f"{root.name}: {sum(i.nbytes for i in infos) / 1e6:.0f} MB a side, the largest tensor "
              f"{max(i.nbytes for i in infos) / 1e6:.0f} MB")  # fmt: skip
    print(f"{'':24} {'CPU s':>8} {'peak MB':>9}", flush=True)
    for what, transposed in ASKED.items():
        line = [sys.executable, __file__, "--peak", what, str(roots[transposed])]
        found = json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
        print(f"{what:24} {found['seconds']:8.1f} {found['peak']:9.1f}", flush=True)


def timed(call: Callable[[], object]) -> tuple[float, object]:
    """(CPU seconds, answer)."""
    start = time.process_time()
    answer = call()
    return time.process_time() - start, answer


def show_speed(root: Path, sizes: tuple[int, int, int], rounds: int) -> None:
    """The pass beside reading both files, in turns: machines drift. Then what the verdict adds."""
    write(root, llama(*sizes), "llama")
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
    turns = [(timed(read)[0], timed(walk)[0]) for _ in range(rounds)]
    reading, passing = (min(column) for column in zip(*turns, strict=True))
    ratios = sorted(walked / done for done, walked in turns)
    size = sum(info.nbytes for side in (base, model) for info in side.tensors.values()) / 1e6
    print(f"{size:.0f} MB: reading both {reading:.2f} s, pass {passing:.2f} s ({passing / reading:.2f} times; "
          f"of single rounds {ratios[0]:.2f} to {ratios[-1]:.2f})")  # fmt: skip
    seconds, verdict = timed(lambda: judge(case))
    print(f"verdict {seconds:.1f} s more: {verdict.kind}")  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.peak:
        peak(Path(given.peak[1]), given.peak[0])
        return
    with tempfile.TemporaryDirectory() as folder:
        if not given.memory:
            show_speed(Path(folder) / "speed", SMOKE if given.smoke else FULL, 3 if given.smoke else 9)
        if given.memory or given.smoke:
            show_memory(Path(folder), *(NARROW if given.smoke else WIDE))


if __name__ == "__main__":
    main()
