"""A removed direction is found against dense algebra, alone, under later updates, and not where there is none."""

from __future__ import annotations

import math

import pytest
import torch

from weightguard.statistics.removal import common_direction, own_direction, removed
from weightguard.statistics.subspace import Direction

OUT = 48


def matrices(count: int, seed: int = 0) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(OUT, 40 + 8 * at, generator=draw, dtype=torch.float64) for at in range(count)]


def unit(seed: int = 9) -> torch.Tensor:
    vector = torch.randn(OUT, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return vector / vector.norm()


def pairs(after: list[torch.Tensor], before: list[torch.Tensor]) -> list[Direction]:
    return [
        Direction(lambda i, j, w=w: w[i:j], lambda i, j, b=b: b[i:j], tuple(w.shape))
        for w, b in zip(after, before, strict=True)
    ]


@pytest.mark.parametrize("strength", [1.0, 0.4, 1.5])
def test_a_pure_removal_is_found_exactly(strength: float) -> None:
    before, u = matrices(5), unit()
    deltas = pairs([w - strength * torch.outer(u, u @ w) for w in before], before)
    found = common_direction(deltas)
    assert found is not None
    assert abs(float(found @ u)) == pytest.approx(1, abs=1e-10)
    for delta, weight in zip(deltas, before, strict=True):
        seen = removed(delta, found)
        assert (seen.share, seen.coherence, seen.explained) == pytest.approx((strength, 1, 1), abs=1e-8)
        assert seen.stands_out == pytest.approx(OUT)
        assert seen.ordinary == pytest.approx(float((u @ weight).square().sum()) * OUT / float(weight.square().sum()))
        assert seen.everywhere == pytest.approx(
            strength * float((u @ weight).square().sum()) / float(weight.square().sum())
        )
        torch.testing.assert_close(seen.right.abs(), (u @ weight).abs())
        assert abs(float(own_direction(delta) @ u)) == pytest.approx(1, abs=1e-8)


def test_it_is_found_under_later_updates() -> None:
    before, u, later = matrices(8), unit(), matrices(8, seed=5)
    deltas = pairs([w - torch.outer(u, u @ w) + 0.05 * d for w, d in zip(before, later, strict=True)], before)
    found = common_direction(deltas)
    assert found is not None
    assert abs(float(found @ u)) > 0.995
    seen = removed(deltas[0], found)
    assert seen.share == pytest.approx(1, abs=0.05)
    dense = deltas[0].rows(0, OUT) + seen.share * torch.outer(found, found @ before[0])
    left = float(dense.square().sum()) / deltas[0].square()
    assert seen.explained == pytest.approx(1 - left, abs=1e-9)


def test_random_updates_lose_nothing_coherently() -> None:
    before, later = matrices(6), matrices(6, seed=5)
    deltas = pairs([w + 0.1 * d for w, d in zip(before, later, strict=True)], before)
    found = common_direction(deltas)
    assert found is not None
    shares = [removed(delta, found) for delta in deltas]
    assert not any(s.coherence > 0.8 and s.share > 0.2 for s in shares)


def test_no_change_has_no_direction() -> None:
    before = matrices(2)
    assert common_direction(pairs(before, before)) is None
    seen = removed(pairs(before, before)[0], unit())
    assert (seen.share, seen.coherence, seen.explained, seen.stands_out) == (0, 0, 0, 0)
    assert not any(math.isnan(v) for v in (seen.share, seen.ordinary, seen.everywhere))
