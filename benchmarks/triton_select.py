"""The row selection in Triton, to measure the CUDA kernel against: one program a row, 31 counts over keys in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def select(weights, norms, columns, k, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * columns
    column = tl.arange(0, BLOCK)
    inside = column < columns
    x = tl.load(weights + start + column, mask=inside, other=0.0)
    factor = tl.load(norms + column, mask=inside, other=0.0)
    key = tl.where(inside, (tl.abs(x.to(tl.float32)) * factor).to(tl.int32, bitcast=True), -1)
    value = 0
    for step in range(31):
        reached = value | (1 << (30 - step))
        if tl.sum((key >= reached).to(tl.int32), 0) >= k:
            value = reached
    ties = k - tl.sum((key > value).to(tl.int32), 0)
    tied = key == value
    taken = (key > value) | (tied & (tl.cumsum(tied.to(tl.int32), 0) <= ties))
    tl.store(weights + start + column, tl.zeros([BLOCK], tl.float32).to(x.dtype), mask=taken)


def launch(weights: torch.Tensor, norms: torch.Tensor, k: int, warps: int) -> None:
    rows, columns = weights.shape
    select[(rows,)](weights, norms, columns, k, BLOCK=triton.next_power_of_2(columns), num_warps=warps)
