"""Products with the difference of two matrices: the kernel is the reference bit for bit, and both are near float64.

`python tests/kernels/test_products.py LIBRARY` runs the comparison against another build (test_build.py: sanitizers).
"""

from __future__ import annotations

import sys
from itertools import product

import pytest
import torch
from matrices import DTYPES, LAYOUTS, laid, load

from weightguard.kernels import native, ops, reference

SHAPES = ((1, 1), (3, 15), (16, 17), (64, 64), (65, 640), (200, 3), (130, 1030))


def compare(dtype: torch.dtype, isas: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for number, (shape, width) in enumerate(product(SHAPES, (1, 16, 20))):
        generator = torch.Generator().manual_seed(number)
        size = 2.0 ** ((0, -18, -70)[number % 3 if dtype != torch.float16 else number % 2])  # float16 is denormal there
        a, b = ((size * torch.randn(shape, generator=generator)).to(dtype) for _ in range(2))
        x = torch.randn(shape[0], width, generator=generator)
        expected = reference.difference_products(a, b, x)
        for isa, layout in product(isas, LAYOUTS):
            monkeypatch.setenv("WEIGHTGUARD_ISA", isa)
            found = native.difference_products(laid(a, layout), laid(b, LAYOUTS[number % 4]), x)
            assert all(map(torch.equal, found, expected)), (dtype, shape, width, isa, layout)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_native_is_the_reference(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if native.compiled() is None:
        pytest.skip(f"no compiled kernels: {native.status()}")
    compare(dtype, native.available(), monkeypatch)


@pytest.mark.parametrize("dtype", (*DTYPES, torch.float64), ids=str)
def test_products_are_near_those_of_float64(dtype: torch.dtype) -> None:
    a, x = torch.randn(300, 700).to(dtype), torch.randn(300, 13)
    b = (a.float() + 0.01 * torch.randn(300, 700)).to(dtype)
    v = a.double() - b.double()
    wanted = v.T @ x.double(), v @ (v.T @ x.double())
    for found, exact in zip(ops.difference_products(a, b, x), wanted, strict=True):
        assert float((found - exact).norm() / exact.norm()) < 3e-7


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float64), ids=str)
def test_a_small_difference_is_not_lost(dtype: torch.dtype) -> None:
    """V of 2**-100, whose products with Vᵀ·x no float32 holds; and of float64, V of 1e-7 that neither side alone shows."""
    a, x = torch.randn(70, 90).to(dtype), torch.randn(70, 3)
    a, b = (a * 2.0**-100, a * -(2.0**-101)) if dtype != torch.float64 else (a, a + 1e-7 * torch.randn_like(a))
    v = a.double() - b.double()
    wanted = v.T @ x.double(), v @ (v.T @ x.double())
    for found, exact in zip(ops.difference_products(a, b, x), wanted, strict=True):
        assert float((found - exact).norm() / exact.norm()) < 1e-6


def test_threads_and_scale_do_not_show() -> None:
    a, b, x = torch.randn(300, 1500), torch.randn(300, 1500), torch.randn(300, 9)
    one = ops.difference_products(a, b, x)
    torch.set_num_threads(2)
    assert all(map(torch.equal, ops.difference_products(a, b, x), one))
    small = ops.difference_products(a, b, x.double() * 2.0**-200)
    assert all(torch.equal(part * 2.0**200, whole) for part, whole in zip(small, one, strict=True))
    zero = ops.difference_products(a, b, torch.zeros(300, 2))
    assert all(not part.any() for part in zero)


def test_what_does_not_fit_is_an_error() -> None:
    for a, b, x in (((3, 4), (4, 3), (3, 1)), ((3, 4), (3, 4), (4, 1))):
        with pytest.raises(ValueError):
            ops.difference_products(torch.ones(a), torch.ones(b), torch.ones(x))


if __name__ == "__main__":
    load(sys.argv[1])
    with pytest.MonkeyPatch.context() as patch:
        for each in DTYPES:
            compare(each, native.available(), patch)
