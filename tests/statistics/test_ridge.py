"""The ridge against a dense float64 solve of the stacked least squares problem, which knows no normal equations."""

from __future__ import annotations

import numpy
import pytest
import torch

from weightguard.errors import DataError
from weightguard.statistics.ridge import Ridge


def drawn(n: int, width: int, out: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=made), torch.randn(n, out, generator=made)


def dense(blocks: list, penalty: float, toward: torch.Tensor) -> numpy.ndarray:
    """numpy's least squares on [√w X; √penalty I] M = [√w Y; √penalty M₀]."""
    x = numpy.concatenate([(w**0.5) * x.double().numpy() for x, _, w in blocks])
    e = numpy.concatenate([(w**0.5) * e.double().numpy() for _, e, w in blocks])
    stacked = numpy.concatenate([x, penalty**0.5 * numpy.eye(x.shape[1])])
    right = numpy.concatenate([e, penalty**0.5 * toward.numpy()])
    return numpy.linalg.lstsq(stacked, right, rcond=None)[0]


@pytest.mark.parametrize("dual", [True, False, None])
@pytest.mark.parametrize("samples", [1, 7, 12, 40])
@pytest.mark.parametrize("penalty", [1e-3, 0.3, 1e4])
def test_equal_to_a_dense_solve(samples: int, penalty: float, dual: bool | None) -> None:
    blocks = [(*drawn(samples, 12, 5, 0), 1 / samples), (*drawn(3, 12, 5, 1), 10 / 3)]
    ridge = Ridge(12, samples + 3, dual=dual)
    for x, e, weight in blocks:
        half = len(x) // 2
        ridge.add(x[:half], e[:half], weight)
        ridge.add(x[half:], e[half:], weight)
    toward = drawn(12, 5, 5, 2)[1].double()
    wanted = dense(blocks, penalty, toward)
    found = ridge.solve(penalty, toward).numpy()
    assert found.dtype == numpy.float64
    assert numpy.linalg.norm(found - wanted) <= 1e-9 * numpy.linalg.norm(wanted)


@pytest.mark.parametrize("dual", [True, False])
def test_a_gram_matrix_summed_in_stripes(dual: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightguard.statistics.ridge.STRIPE", 5)
    test_equal_to_a_dense_solve(13, 0.3, dual)


def test_the_smaller_side_is_solved() -> None:
    assert Ridge(12, 11).dual and not Ridge(12, 12).dual


def test_no_ridge_and_dependent_samples_are_refused() -> None:
    ridge = Ridge(4, 4)
    ridge.add(torch.zeros(4, 4), torch.ones(4, 2), 1.0)
    with pytest.raises(DataError, match="larger --rho"):
        ridge.solve(0.0, torch.zeros(4, 2))
