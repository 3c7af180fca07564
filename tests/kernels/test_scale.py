"""W to A + keep·(W − A): the bits of the torch expression, the sums of the reference, in every implementation.

`python tests/kernels/test_scale.py LIBRARY` runs the comparisons against another build (test_build.py: sanitizers).
"""

from __future__ import annotations

import sys
from itertools import product

import pytest
import torch
from matrices import DTYPES, LAYOUTS, laid, load, values

from weightguard.kernels import native, ops, reference

KEEPS = (0.7, 0.05, 1 / 3, 1.5, -0.25, 2.0**-20)
SHAPES = ((0, 5), (5, 0), (1, 1), (3, 31), (4, 33), (70, 1000), (2, 4096))
INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


@pytest.fixture(params=("portable", "avx2", "avx512"))
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param not in native.available():
        pytest.skip(f"no {request.param} kernels here: {native.status()}")
    monkeypatch.setenv("WEIGHTGUARD_ISA", request.param)
    return request.param


def expected(weights: torch.Tensor, keep: float, aligned: torch.Tensor | None) -> torch.Tensor:
    origin = torch.zeros(1, 1) if aligned is None else aligned.float()
    return (weights.float() - origin).mul_(keep).add_(origin).to(weights.dtype)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit, the sign of zero included."""
    return torch.equal(a.contiguous().view(INTEGERS[a.dtype]), b.contiguous().view(INTEGERS[b.dtype]))


def check(weights: torch.Tensor, keep: float, aligned: torch.Tensor | None) -> None:
    whole, other = expected(weights, keep, aligned), weights.clone()
    taken, plain = ops.scale(weights, keep, aligned), reference.scale(other, keep, aligned)
    assert taken == plain and taken.finite and taken.selected == weights.numel()
    assert same(weights, whole) and same(other, whole)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_shape_and_layout(dtype: torch.dtype, isa: str) -> None:
    for shape, layout, keep in product(SHAPES, LAYOUTS, KEEPS[:2]):
        kind = "tiny" if shape[0] == 4 else "normal"
        for aligned in (None, laid(values(kind, shape, dtype, 1), layout)):
            check(laid(values(kind, shape, dtype, 2), layout), keep, aligned)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_every_value_of_sixteen_bits(dtype: torch.dtype, isa: str) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[every.isfinite()].view(8, -1)
    for keep in KEEPS:
        after = every.clone()
        finite = ops.scale(after, keep, None).finite
        assert same(after, expected(every, keep, None))
        assert finite == bool(after.isfinite().all())  # 1.5 leaves the range


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf")))
def test_what_is_not_finite_is_told(value: float, dtype: torch.dtype, isa: str) -> None:
    for side, column, scaled in product((0, 1), (0, 33), (ops.scale, reference.scale)):
        pair = [torch.rand(3, 40).to(dtype), torch.rand(3, 40).to(dtype)]
        pair[side][1, column] = value
        assert not scaled(pair[0], 0.5, pair[1]).finite


def test_float64_and_threads() -> None:
    wide = torch.randn(70, 100, dtype=torch.float64)
    scaled = wide.clone()
    assert ops.scale(scaled, 0.7).finite and torch.equal(scaled, wide * 0.7 + 0.0)
    weights = torch.randn(700, 1000)
    one, four = weights.clone(), weights.clone()
    taken = ops.scale(one, 0.7)
    torch.set_num_threads(4)
    assert ops.scale(four, 0.7) == taken and torch.equal(one, four)


def test_aligned_weights_of_another_shape_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"aligned weights \(2, 3\)"):
        ops.scale(torch.zeros(3, 3), 0.5, torch.zeros(2, 3))


if __name__ == "__main__":
    load(sys.argv[1])
    with pytest.MonkeyPatch.context() as patch:
        for name, kind in product(native.available(), DTYPES):
            patch.setenv("WEIGHTGUARD_ISA", name)
            test_every_shape_and_layout(kind, name)
