"""Projection on the alignment direction at sizes where float32 sums go wrong, against dense float64 matrices."""

from __future__ import annotations

import pytest
import torch

from weightguard.statistics.subspace import Direction, along, projector, rounding_floor, rounding_of
from weightguard.weights import Whole

SIZES = [(64, 64), (48, 200), (200, 48), (1, 33), (33, 1), (1024, 1024)]
LARGE = [(4096, 4096), (1024, 4096), (4096, 1024)]
EVERY = [*SIZES, *(pytest.param(size, marks=pytest.mark.full) for size in LARGE)]


def made(shape: tuple[int, int], dtype: torch.dtype = torch.bfloat16) -> tuple[Direction, torch.Tensor]:
    """A direction between two stored matrices, and V itself in float64."""
    generator = torch.Generator().manual_seed(shape[0] * 10_007 + shape[1])
    aligned = (torch.randn(shape, generator=generator) * 0.02).to(dtype)
    unaligned = (aligned.float() + torch.randn(shape, generator=generator) * 0.002).to(dtype)
    u = rounding_of({torch.bfloat16: "BF16", torch.float32: "F32"}[dtype])
    direction = Direction(lambda i, j: aligned[i:j].float(), lambda i, j: unaligned[i:j].float(), shape, u)
    return direction, aligned.double() - unaligned.double()


@pytest.mark.parametrize("kind", ["paper", "normalized", "exact"])
@pytest.mark.parametrize("shape", EVERY)
def test_projected_factors_and_cosines(shape: tuple[int, int], kind: str) -> None:
    direction, v = made(shape)
    generator = torch.Generator().manual_seed(1)
    rank = min(5, *shape)
    a, b = torch.randn(16, shape[1], generator=generator), torch.randn(shape[0], 16, generator=generator)
    found = projector(direction, kind, rank if kind == "exact" else None)
    assert found is not None
    projected = found.project(b)
    wanted = dense(v, kind, rank) @ b.double()
    assert float((projected - wanted).norm() / wanted.norm()) < 1e-9
    update, after = b.double() @ a.double(), wanted @ a.double()
    seen = along(b, projected, a.double() @ a.double().T)
    assert seen is not None
    assert seen.cosine == pytest.approx(float((after * update).sum() / (after.norm() * update.norm())), abs=1e-10)
    assert seen.kept == pytest.approx(float(after.norm() / update.norm()), rel=1e-10)
    assert seen.norm == pytest.approx(float(update.norm()), rel=1e-10)


def dense(v: torch.Tensor, kind: str, rank: int) -> torch.Tensor:
    if kind == "paper":
        return v @ v.T / (v * v).sum().sqrt()
    squares, u = torch.linalg.eigh(v @ v.T)
    return v @ v.T / squares[-1] if kind == "normalized" else u[:, -rank:] @ u[:, -rank:].T


@pytest.mark.parametrize("kind", ["paper", "normalized"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(48, 200), (200, 48), (1024, 1024)])
def test_factors_against_stored_matrices(shape: tuple[int, int], dtype: torch.dtype, kind: str) -> None:
    """The kernel adds 64 products in float32: 1e-7 of the norm, 1e-8 of a share of it."""
    generator = torch.Generator().manual_seed(3)
    one, other = (torch.randn(shape, generator=generator).mul(0.02).to(dtype) for _ in range(2))
    v = one.double() - other.double()
    direction = Direction(Whole(one, torch.float32), Whole(other, torch.float32), shape)
    assert direction.square() == pytest.approx(float((v * v).sum()), rel=1e-13)
    b, a = torch.randn(shape[0], 8, generator=generator).double(), torch.randn(8, shape[1], generator=generator)
    found = projector(direction, kind)
    assert found is not None
    projected, wanted = found.project(b * 1e-30), dense(v, kind, 1) @ b * 1e-30
    assert float((projected - wanted).norm() / wanted.norm()) < 3e-7
    gram = a.double() @ a.double().T
    seen, exact = along(b * 1e-30, projected, gram), along(b * 1e-30, wanted, gram)
    assert seen is not None and exact is not None
    assert seen.cosine == pytest.approx(exact.cosine, abs=1e-7) and seen.kept == pytest.approx(exact.kept, rel=1e-7)


@pytest.mark.parametrize("shape", SIZES)
def test_a_full_update_goes_by_the_cheaper_side(shape: tuple[int, int]) -> None:
    direction, v = made(shape)
    update = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    found = projector(direction, "paper")
    assert found is not None
    wanted = dense(v, "paper", 1) @ update.double()
    projected = found.project(update)
    assert float((projected - wanted).norm() / wanted.norm()) < 1e-12
    seen = along(update, projected)
    assert seen is not None
    cosine = float((wanted * update.double()).sum() / (wanted.norm() * update.double().norm()))
    assert seen.cosine == pytest.approx(cosine, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_alone_stays_below_the_floor(dtype: torch.dtype) -> None:
    """Both sides are one matrix plus a rank-3 difference, then rounded: three directions count, not a thousand."""
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(256, 192, generator=generator) * 0.02
    difference = torch.randn(256, 3, generator=generator) @ torch.randn(3, 192, generator=generator) * 0.002
    aligned, unaligned = one.to(dtype), (one - difference).to(dtype)
    u = rounding_of({torch.bfloat16: "BF16", torch.float16: "F16"}[dtype])
    direction = Direction(lambda i, j: aligned[i:j].float(), lambda i, j: unaligned[i:j].float(), (256, 192), u)
    noise = (aligned.double() - one.double()) - (unaligned.double() - (one - difference).double())
    largest = float(torch.linalg.matrix_norm(noise, 2))
    assert largest < 1.2 * rounding_floor(direction) < 1.5 * largest
    found = projector(direction, "exact")
    assert found is not None
    assert found.rank == 3


def test_no_direction_and_no_update() -> None:
    zero = Direction(lambda i, j: torch.ones(j - i, 4), lambda i, j: torch.ones(j - i, 4), (6, 4))
    assert projector(zero, "paper") is None
    assert along(torch.zeros(6, 2), torch.zeros(6, 2)) is None
