"""The CUDA kernels on this machine's GPU against copying, torch and Triton: device time, and whole calls.

    python benchmarks/bench_cuda.py               # every dtype, half a minute
    python benchmarks/bench_cuda.py --smoke       # small sizes, where there is a GPU; says so where there is none

Device time is taken between events around one launch and is the median of the rounds; a call is timed on the host until
its answer is there. Every result is compared with the reference before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median

import timer
import torch

from weightguard.kernels import device, ops, reference
from weightguard.kernels.reference import Choice

Work = Callable[[], object]
AHEAD = 1_000_000  # cycles that the device waits, so that a launch is there before its turn comes
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def on_device(works: Mapping[str, Work], rounds: int, before: Work) -> dict[str, float]:
    """Median seconds of device time of each work; `before` runs ahead of it, untimed."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 2):
        for name, work in works.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            before()
            torch.cuda._sleep(AHEAD)
            start.record()
            work()
            end.record()
            end.synchronize()
            found[name].append(start.elapsed_time(end) / 1e3)
    return {name: median(times[2:]) for name, times in found.items()}


def on_host(work: Work, rounds: int, before: Work) -> float:
    """Median seconds from the call until the device is done."""
    times = []
    for _ in range(rounds + 2):
        before()
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return median(times[2:])


def select_rows(shape: tuple[int, int], dtype: torch.dtype, rounds: int) -> list[dict]:
    """5 % of every row by |W|·norm, zeroed or given back."""
    weights = torch.randn(shape, device="cuda").to(dtype)
    aligned = (weights.float() + 0.01 * torch.randn(shape, device="cuda")).to(dtype)
    norms, k = torch.rand(shape[1], device="cuda") + 0.1, round(0.05 * shape[1])
    edited, other, choice = weights.clone(), torch.empty_like(weights), Choice("row", k, norms)

    def fresh() -> None:
        other.normal_()  # as large as the cache, so that nobody reads what the copy left there
        edited.copy_(weights)

    def topk() -> None:
        taken = (edited.float().abs() * norms).topk(k, dim=1, sorted=False).indices
        edited.scatter_(1, taken, 0)

    works: dict[str, Work] = {
        "copy_": lambda: other.copy_(edited),
        "row zero": lambda: device.launch_select_rows(edited, choice, None),
        "row restore": lambda: device.launch_select_rows(edited, choice, aligned),
        "topk": topk,
        **triton_works(edited, norms, k),
    }
    for name, work in works.items():
        check(name, work, fresh, weights, edited, choice, aligned if name == "row restore" else None)
    found = on_device(works, rounds, fresh)
    call = on_host(lambda: ops.select_apply(edited, choice, measure=False), rounds, fresh)
    ours, floor, name = found["row zero"], found["copy_"], f"{str(dtype)[6:]} {shape[0]} x {shape[1]}, "
    rest = {key: time for key, time in found.items() if key.startswith("Triton")}
    return [
        timer.row(name + "row zero", "CUDA", ours, floor, "copy_", 1.3),
        timer.row(name + "row restore", "CUDA", found["row restore"], floor, "copy_"),
        timer.row(name + "row zero, call", "CUDA", call, floor, "copy_"),
        timer.row(name + "topk + scatter", "torch", found["topk"], ours, "row zero", 5, least=True),
        *(timer.row(name + key, "Triton", time, ours, "row zero", 1, least=True) for key, time in rest.items()),
    ]


def check(
    name: str, work: Work, fresh: Work, weights: torch.Tensor, edited: torch.Tensor, choice: Choice,
    aligned: torch.Tensor | None,
) -> None:  # fmt: skip
    """Zeroing may differ from the reference in ties where it is torch that chooses; nothing else may."""
    fresh()
    if name == "copy_":
        return
    work()
    expected = weights.clone()
    reference.select_apply(expected, choice, aligned, False)
    if name == "topk":
        assert int((edited == 0).sum()) == int((expected == 0).sum()), name
    else:
        assert torch.equal(edited, expected), name


def triton_works(edited: torch.Tensor, norms: torch.Tensor, k: int) -> dict[str, Work]:
    """The same selection written in Triton, where it is installed: the threshold bit by bit over keys in registers."""
    try:
        from triton_select import launch
    except ImportError:
        return {}
    return {f"Triton, {warps} warps": partial(launch, edited, norms, k, warps) for warps in (8, 16, 32)}


def sum_rows(tokens: int, width: int, dtype: torch.dtype, rounds: int) -> list[dict]:
    """Σ x² right after the linear layer it rides on."""
    inputs, weights = torch.randn(tokens, width).to(dtype).cuda(), torch.randn(width, width).to(dtype).cuda()
    counted = torch.ones(tokens, dtype=torch.bool, device="cuda")
    assert torch.allclose(device.square_sums(inputs, counted), inputs.double().square().sum(0), rtol=1e-12)
    output = torch.empty_like(inputs)
    works: dict[str, Work] = {
        "forward": lambda: torch.mm(inputs, weights.T, out=output),
        "read": inputs.count_nonzero,  # what torch takes to read them once
        "sums": lambda: device.square_sums(inputs, counted),
        "torch": lambda: reference.square_sums(inputs, counted),
    }
    found = on_device(works, rounds, works["forward"])
    name, forward = f"{str(dtype)[6:]} square sums, {tokens} tokens", f"forward {width} x {width}"
    return [timer.row(name, "CUDA", found["sums"], found["forward"], forward, 0.03),
            timer.row(name + ", count_nonzero", "torch", found["read"], found["forward"], forward),
            timer.row(name, "torch", found["torch"], found["sums"], "our sums")]  # fmt: skip


def pair_rows(shape: tuple[int, int], dtype: torch.dtype, rounds: int) -> list[dict]:
    a = torch.randn(shape, device="cuda").to(dtype)
    b = (a.float() + 0.01 * torch.randn(shape, device="cuda")).to(dtype)
    works: dict[str, Work] = {"copy_": partial(a.clone().copy_, b), "pair": partial(device.launch_pair, a, b)}
    pair, expected = ops.pair_statistics(a, b), reference.pair_statistics(a.cpu(), b.cpu())
    assert (pair.changed, pair.largest) == (expected.changed, expected.largest)
    assert all(abs(getattr(pair, key) - getattr(expected, key)) <= 1e-12 * expected.aa for key in reference.SUMS)
    found = on_device(works, rounds, lambda: torch.empty(1 << 26, device="cuda").normal_())
    return [timer.row(f"{str(dtype)[6:]} pair statistics", "CUDA", found["pair"], found["copy_"], "copy_")]


def driver() -> str:
    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(json.dumps({"skipped": "no CUDA device here"}))
        return
    torch.manual_seed(0)
    rounds, rows = 3 if options.smoke else options.rounds, []
    shapes = ((64, 1100),) if options.smoke else ((4096, 11008), (4096, 4096), (8192, 28672))
    tokens, width = (64, 96) if options.smoke else (2048, 4096)
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda,
                      "driver": driver()}))  # fmt: skip
    for dtype in DTYPES:
        for shape in shapes:
            rows += select_rows(shape, dtype, rounds)
        rows += [*sum_rows(tokens, width, dtype, rounds), *pair_rows(shapes[0], dtype, rounds)]
    timer.print_rows(rows, judged=not options.smoke, clock="GPU")


if __name__ == "__main__":
    main()
