"""Column sums of squares against the forward they ride on, pair statistics and the finite check against reading.

    python benchmarks/bench_stats.py                 # bf16, about a minute
    python benchmarks/bench_stats.py --dtype float32
    python benchmarks/bench_stats.py --smoke

One thread, CPU time, best of the rounds. Every implementation is checked against the reference before it is timed.
"""

from __future__ import annotations

import argparse

import timer
import torch

from weightguard.kernels import ops


def square_rows(tokens: int, width: int, dtype: torch.dtype, rounds: int) -> list[dict]:
    """Σ x² over the tokens, beside a linear layer of the same width on the same tokens."""
    inputs, weights = torch.randn(1, tokens, width).to(dtype), torch.randn(width, width).to(dtype)
    counted = torch.ones(1, tokens, dtype=torch.bool)
    expected = inputs.double().square().sum((0, 1))
    works = {"forward": lambda: inputs @ weights.T}
    for kernels in timer.implementations():
        works[kernels] = timer.under(kernels, lambda: ops.square_sums(inputs, counted))
        assert torch.allclose(works[kernels](), expected, rtol=1e-12), kernels
    found = timer.best(works, rounds)
    name = f"square sums, {tokens} tokens"
    return [
        timer.row(name, kernels, found[kernels].cpu, found["forward"].cpu, f"forward {width} x {width}",
                  0.02 if kernels == timer.implementations()[0] else None)
        for kernels in timer.implementations()
    ]  # fmt: skip


def pair_rows(shape: tuple[int, int], dtype: torch.dtype, rounds: int) -> list[dict]:
    a = torch.randn(shape).to(dtype)
    b, same = (a.float() + 0.01 * torch.randn(shape)).to(dtype), a.clone()
    works = {("floor", ""): lambda: timer.read_both(a, same)}
    for kernels in timer.implementations():
        works["pair statistics", kernels] = timer.under(kernels, lambda: ops.pair_statistics(a, b))
        works["is_finite", kernels] = timer.under(kernels, lambda: ops.is_finite(a))
    seen = [works["pair statistics", kernels]() for kernels in timer.implementations()]
    assert all(each == seen[-1] for each in seen)
    found = timer.best(works, rounds)
    best_kernels = timer.implementations()[0]
    return [
        timer.row(name, kernels, timing.cpu, found["floor", ""].cpu, "reading two",
                  1.8 if name == "pair statistics" and kernels == best_kernels else None)
        for (name, kernels), timing in found.items()
        if kernels
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--smoke", action="store_true", help="small, for CI: equality, and that it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    timer.print_machine()
    dtype = getattr(torch, options.dtype)
    tokens, width, shape, rounds = (
        (64, 96, (64, 1100), 1) if options.smoke else (2048, 4096, (4096, 11008), options.rounds)
    )
    timer.print_rows([*square_rows(tokens, width, dtype, rounds), *pair_rows(shape, dtype, rounds)])


if __name__ == "__main__":
    main()
