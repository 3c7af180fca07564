"""Column sums of squares against the forward they ride on; pair statistics, Safe LoRA and the finite check against reading.

    python benchmarks/bench_stats.py                 # bf16, about a minute
    python benchmarks/bench_stats.py --dtype float32
    python benchmarks/bench_stats.py --smoke

One thread, CPU time, best of the rounds. Every implementation is checked against the reference before it is timed.
"""

from __future__ import annotations

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


def safe_lora_rows(size: int, rank: int, dtype: torch.dtype, rounds: int) -> list[dict]:
    """C·B, with the Gram terms it goes through, against reading both matrices and against forming C = V·Vᵀ first."""
    a = torch.randn(size, size).to(dtype)
    b, same, x = (a.float() + 0.01 * torch.randn(size, size)).to(dtype), a.clone(), torch.randn(size, rank)
    exact = formed(a.double(), b.double(), x.double())
    kernels = timer.implementations()
    works = {name: timer.under(name, lambda: ops.difference_products(a, b, x)[1]) for name in kernels}
    for name, work in works.items():
        assert float((work() - exact).norm() / exact.norm()) < 1e-6, name
    found = timer.best({"read": lambda: timer.read_both(a, same), **works}, rounds)
    slow = timer.best({"formed": lambda: formed(a.float(), b.float(), x)}, 1)["formed"]
    name = f"Safe LoRA, d = {size}, r = {rank}"
    rows = [timer.row(name, each, found[each].cpu, found["read"].cpu, "reading two", 3.0 if each == kernels[0] else None)
            for each in kernels]  # fmt: skip
    return [*rows, timer.row("C formed, float32", "torch", slow.cpu, found[kernels[0]].cpu, name, 60, least=True)]


def formed(a: torch.Tensor, b: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    v = a - b
    return (v @ v.T) @ x


def measured(dtype: torch.dtype, rounds: int, smoke: bool) -> list[dict]:
    """All rows of this benchmark, one thread."""
    tokens, width, shape = (64, 96, (64, 1100)) if smoke else (2048, 4096, (4096, 11008))
    return [*square_rows(tokens, width, dtype, rounds), *safe_lora_rows(width, 16, dtype, rounds),
            *pair_rows(shape, dtype, rounds)]  # fmt: skip


def main() -> None:
    timer.run(__doc__, measured)


if __name__ == "__main__":
    main()
