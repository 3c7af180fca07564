"""Row sums, column sums of squares, pair statistics, thresholds and the finite check.

`python tests/kernels/test_sums.py LIBRARY` runs the comparisons against another build (test_build.py: sanitizers).
"""

from __future__ import annotations

import sys
from fractions import Fraction
from itertools import product
from math import fsum, sqrt

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import DTYPES, LAYOUTS, laid, load

from weightguard.kernels import native, ops, reference


@pytest.fixture(params=("reference", "portable", "avx2", "avx512"))
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each implementation that this machine has, behind ops."""
    if request.param == "reference":
        monkeypatch.setenv("WEIGHTGUARD_NATIVE", "0")
        return request.param
    if native.compiled() is None:
        pytest.skip(f"no compiled kernels: {native.status()}")
    if request.param not in native.available():
        pytest.skip(f"this machine has {', '.join(native.available())}")
    monkeypatch.setenv("WEIGHTGUARD_ISA", request.param)
    return request.param


@pytest.mark.parametrize("columns", (0, 1, 31, 32, 33, 64, 1000))
def test_row_sums_of_whole_numbers_are_exact(columns: int) -> None:
    values = torch.arange(3 * columns, dtype=torch.float64).view(3, columns)
    assert torch.equal(reference.row_sums(values), values.sum(1))


def test_row_sums_add_columns_to_lanes_and_fold_the_lanes() -> None:
    values = torch.rand(2, 77, dtype=torch.float64) * torch.logspace(-9, 9, 77, dtype=torch.float64)
    for row, total in zip(values.tolist(), reference.row_sums(values).tolist(), strict=True):
        lanes = [0.0] * 32
        for column, value in enumerate(row):
            lanes[column % 32] += value
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [a + b for a, b in zip(lanes[:half], lanes[half:], strict=True)]
        assert total == lanes[0]
        assert abs(total - fsum(row)) <= 1e-14 * fsum(row)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 2**31 - 2), min_size=1, max_size=60), st.data())
def test_threshold_splits_exactly(keys: list[int], data: st.DataObject) -> None:
    keys = [key if data.draw(st.booleans()) else keys[0] for key in keys]
    k = data.draw(st.integers(1, len(keys)))
    value, ties = reference.threshold(lambda: torch.tensor(keys, dtype=torch.int32).split(7), k)
    above = sum(key > value for key in keys)
    assert value == sorted(keys, reverse=True)[k - 1]
    assert above + ties == k and 1 <= ties <= keys.count(value)


def test_masks_and_thresholds_over_keys_are_the_reference(implementation: str) -> None:
    for number, (shape, kind) in enumerate(product(((1, 1), (3, 70), (40, 1000), (300, 2000)), ("few", "many", "top"))):
        generator = torch.Generator().manual_seed(number)
        limit = {"few": 5, "many": 2**31 - 1, "top": 3}[kind]
        every = torch.randint(0, limit, shape, generator=generator, dtype=torch.int64)
        every = (every + (2**31 - 3 if kind == "top" else 0)).to(torch.int32)

        def keys(start: int, stop: int, every: torch.Tensor = every) -> torch.Tensor:
            return every[start:stop]

        for group, size in (("row", shape[1]), ("matrix", every.numel())):
            for k in {0, 1, size // 20, size // 2, size}:
                found = torch.cat([mask for _, _, mask in ops.masks(keys, shape, k, group)])
                parts = every.numpy().reshape(-1, size)
                order = numpy.argsort(-parts.astype(numpy.int64), axis=1, kind="stable")[:, :k]
                wanted = numpy.zeros(parts.shape, bool)
                numpy.put_along_axis(wanted, order, True, axis=1)
                assert (found.numpy().reshape(parts.shape) == wanted).all(), (shape, kind, group, k)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_square_sums_against_float64(dtype: torch.dtype, implementation: str) -> None:
    for positions, columns in product((0, 1, 4, 67), (1, 16, 33, 600)):
        inputs = torch.randn(2, positions, columns).to(dtype)
        counted = torch.rand(2, positions) < 0.7
        expected = (inputs.double() ** 2)[counted].sum(0)
        for given_ in (inputs, laid_wide(inputs)):
            found = ops.square_sums(given_, counted)
            assert found.dtype == torch.float64
            assert torch.allclose(found, expected, rtol=1e-12, atol=0)


def laid_wide(inputs: torch.Tensor) -> torch.Tensor:
    """A slice of a wider tensor: rows further apart than they are long."""
    wide = torch.zeros(*inputs.shape[:-1], inputs.shape[-1] + 3, dtype=inputs.dtype)
    wide[..., 1:-2] = inputs
    return wide[..., 1:-2]


def test_square_sums_do_not_depend_on_threads(implementation: str) -> None:
    inputs, counted = torch.randn(1, 300, 2000).bfloat16(), torch.ones(1, 300)
    one = ops.square_sums(inputs, counted.bool())
    torch.set_num_threads(2)
    assert torch.equal(ops.square_sums(inputs, counted.bool()), one)


def test_square_sums_of_the_wrong_mask_is_an_error() -> None:
    with pytest.raises(ValueError):
        ops.square_sums(torch.ones(2, 3, 4), torch.ones(2, 2, dtype=torch.bool))


@pytest.mark.parametrize("dtype", (*DTYPES, torch.float64), ids=str)
def test_is_finite(dtype: torch.dtype, implementation: str) -> None:
    for shape in ((0,), (1,), (3, 5), (2, 3, 700), (600, 500)):
        good = torch.full(shape, -torch.finfo(dtype).max, dtype=dtype)
        assert ops.is_finite(good)
        for bad in (float("nan"), float("inf"), -float("inf")) if good.numel() else ():
            for place in (0, good.numel() // 2, -1):
                damaged = good.clone()
                damaged.view(-1)[place] = bad
                assert not ops.is_finite(damaged)
                assert damaged.dim() < 2 or not ops.is_finite(damaged.transpose(0, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pair_statistics_are_the_reference_and_right(dtype: torch.dtype, implementation: str) -> None:
    for rows, columns in ((0, 3), (1, 1), (3, 17), (5, 64), (40, 1000)):
        a = torch.randn(rows, columns).to(dtype)
        b = torch.where(torch.rand(rows, columns) < 0.5, a, torch.randn(rows, columns).to(dtype))
        found = ops.pair_statistics(a, b)
        assert found == reference.pair_statistics(a, b)
        for number, layout in enumerate(LAYOUTS):
            assert found == ops.pair_statistics(laid(a, layout), laid(b, LAYOUTS[number - 1])), layout
        x, y = a.double().numpy(), b.double().numpy()
        d = x - y
        expected = ((x * x).sum(), (y * y).sum(), (x * y).sum(), (d * d).sum(), (d**4).sum())
        sums = (found.aa, found.bb, found.ab, found.dd, found.d4)
        scale = (expected[0], expected[1], sqrt(expected[0] * expected[1]), expected[3], expected[4])
        assert all(abs(s - e) <= 1e-12 * size for s, e, size in zip(sums, expected, scale, strict=True))
        assert found.largest == numpy.abs(d).max(initial=0) and found.changed == (x != y).sum() and found.finite


def test_pair_statistics_of_any_shape(implementation: str) -> None:
    one = ops.pair_statistics(torch.tensor(3.0), torch.tensor(1.0))
    assert (one.aa, one.bb, one.ab, one.dd, one.d4, one.largest, one.changed) == (9, 1, 3, 4, 16, 2, 1)
    assert ops.pair_statistics(torch.ones(2, 3, 4), torch.ones(2, 3, 4)).aa == 24
    with pytest.raises(ValueError):
        ops.pair_statistics(torch.ones(2), torch.ones(3))


@pytest.mark.parametrize("side", (0, 1))
def test_pair_statistics_report_what_is_not_finite(side: int, implementation: str) -> None:
    pair = [torch.randn(4, 50), torch.randn(4, 50)]
    for bad in (float("nan"), float("inf")):
        pair[side][2, 49] = bad
        assert not ops.pair_statistics(*pair).finite


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=70))
def test_pair_sums_are_within_a_rounding_of_the_exact_ones(entries: list[float]) -> None:
    a = torch.tensor([entries])
    found = ops.pair_statistics(a, torch.zeros_like(a))
    exact = sum(Fraction(value) ** 2 for value in a[0].tolist())
    assert abs(Fraction(found.aa) - exact) <= exact * Fraction(1, 10**14) and found.aa == found.dd


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("aligned_dtype", [None, torch.float32, torch.float64])
def test_what_an_edit_moved(
    dtype: torch.dtype, aligned_dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiled sums are the reference's to the bit, whatever the dtypes on both sides."""
    draw = torch.Generator().manual_seed(3)
    before, other = (torch.randn(7, 333, generator=draw).to(dtype) for _ in range(2))
    after = torch.where(torch.rand(7, 333, generator=draw) < 0.1, other, before)
    aligned = None if aligned_dtype is None else torch.randn(7, 333, generator=draw).to(aligned_dtype)
    found = ops.moved(before, after, aligned)
    monkeypatch.setenv("WEIGHTGUARD_NATIVE", "0")
    assert found == ops.moved(before, after, aligned) == reference.moved(before, after, aligned)
    assert found[0] == int((after != before).sum()) > 0 and len(found[1]) == (2 if aligned is None else 4)


def test_what_an_edit_moved_out_of_range() -> None:
    """Infinity is for the caller to refuse: the sums say so and do not pretend."""
    before, after = torch.ones(2, 40), torch.ones(2, 40)
    after[1, 3] = float("inf")
    changed, squares = ops.moved(before, after)
    assert changed == 1 and squares["change"] == [0.0, float("inf")]


if __name__ == "__main__":
    load(sys.argv[1])
    with pytest.MonkeyPatch.context() as patch:
        for isa, dtype in product(native.available(), DTYPES):
            patch.setenv("WEIGHTGUARD_ISA", isa)
            test_pair_statistics_are_the_reference_and_right(dtype, isa)
            test_square_sums_against_float64(dtype, isa)
            test_is_finite(dtype, isa)
            test_masks_and_thresholds_over_keys_are_the_reference(isa)
