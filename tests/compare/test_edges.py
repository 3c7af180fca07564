"""The edge of independent entries against dense singular values, and sketches over row blocks against dense algebra."""

from __future__ import annotations

import numpy
import pytest
import torch

from weightguard.comparison import edges, spectra
from weightguard.statistics.subspace import Direction


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of(matrix: torch.Tensor) -> Direction:
    zero = torch.zeros_like(matrix)
    return Direction(lambda i, j: matrix[i:j], lambda i, j: zero[i:j], (matrix.shape[0], matrix.shape[1]))


@pytest.mark.parametrize(("out", "into"), [(400, 400), (200, 800), (800, 200)])
def test_rows_and_columns_of_one_size_give_marchenko_and_pastur(out: int, into: int) -> None:
    seen = edges.Margins(numpy.full(out, 9.0 * into), numpy.full(into, 9.0 * out))
    assert seen.edge == pytest.approx(3 * (out**0.5 + into**0.5), rel=1e-6)


@pytest.mark.parametrize(("spread", "within"), [(0.0, 0.02), (0.5, 0.07)])  # the edge is softer where rows differ
def test_the_edge_is_where_singular_values_of_noise_end(spread: float, within: float) -> None:
    rows, columns = (spread * normal(600, 1, seed=1)).exp(), (spread * normal(1, 900, seed=2)).exp()
    matrix = rows * normal(600, 900) * columns
    seen = edges.margins([matrix[:250], matrix[250:]])
    assert seen.edge == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=within)


def test_nothing_has_no_edge() -> None:
    assert edges.margins([torch.zeros(4, 3)]).edge == 0


@pytest.mark.parametrize("block", [300, 1 << 20])
def test_a_sketch_by_row_blocks_sees_the_leading_values(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    from weightguard.comparison import pairs

    monkeypatch.setattr(pairs, "BLOCK", block)
    matrix = normal(300, 24) @ normal(24, 420) + 0.01 * normal(300, 420, seed=3)
    levels = spectra.Levels(0.0, 1.0)
    found = spectra.sketched_spectrum(of(matrix), float(matrix.norm()), levels)
    dense = torch.linalg.svdvals(matrix).numpy()
    numpy.testing.assert_allclose(found.values[:24], dense[:24], rtol=1e-4)
    assert all(ours <= exact * (1 + 1e-5) for ours, exact in zip(found.values, dense, strict=False))


def test_both_ways_to_the_level_of_noise_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = of((0.3 * normal(640, 1, seed=1)).exp() * normal(640, 1536))
    small = spectra.levels_of(matrix, 0.5)
    monkeypatch.setattr(spectra, "BLOCK", 1000)
    large = spectra.levels_of(matrix, 0.5)
    assert (large.noise, large.floor) == pytest.approx((small.noise, small.floor), rel=0.04)
