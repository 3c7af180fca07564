"""The CUDA sources compile for the three targets and are shipped; what they compute is tested where there is a GPU."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from itertools import product
from pathlib import Path

import pytest
import torch
from matrices import DTYPES, values

from weightguard.errors import SystemFailure, UsageError
from weightguard.kernels import device, ops, reference
from weightguard.kernels.reference import Choice

ROOT = Path(__file__).parents[2]
SOURCES = ("pair", "select_rows", "square_sums")
TARGETS = ("80", "90", "100")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: the kernels were compiled only")


def test_every_source_compiles_for_every_target(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc here")
    assert sorted(path.stem for path in device.sources().glob("*.cu")) == sorted(SOURCES)
    everything = tmp_path / "everything.cu"  # in one file: a compiler takes most of its time to start
    everything.write_text("".join(f'#include "{device.sources() / name}.cu"\n' for name in SOURCES))
    targets = [f"-gencode=arch=compute_{each},code=sm_{each}" for each in TARGETS]
    command = [
        nvcc,
        *device.OPTIONS,
        "-Werror",
        "all-warnings",
        *targets,
        "-fatbin",
        everything,
        "-o",
        tmp_path / "out",
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_nvrtc_compiles_them_from_the_shipped_text() -> None:
    try:
        device._nvrtc()
    except SystemFailure:
        pytest.skip("no NVRTC here")
    assert device.compiled("pair", "sm_90").startswith(b"\x7fELF")


@pytest.mark.full
def test_the_wheel_holds_the_sources(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        held = {name.removeprefix("weightguard/kernels/cuda/") for name in wheel.namelist()}
    assert {*(f"{name}.cu" for name in SOURCES), "values.cuh"} <= held


def test_the_kernels_are_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEIGHTGUARD_CUDA", raising=False)
    assert not device.takes(torch.ones(2, 2))
    monkeypatch.setenv("WEIGHTGUARD_CUDA", "1")
    assert not device.takes(torch.ones(2, 2))  # on the CPU
    monkeypatch.setenv("WEIGHTGUARD_CUDA", "yes")
    with pytest.raises(UsageError, match="WEIGHTGUARD_CUDA='yes'"):
        device.takes(torch.ones(2, 2))


@gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_selection_on_the_device_is_the_reference(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTGUARD_CUDA", "1")
    shapes = ((1, 1), (3, 15), (5, 257), (9, 4096), (2, 20000))
    for number, (shape, kind, restore) in enumerate(
        product(shapes, ("ties", "normal", "sparse", "tiny"), (False, True))
    ):
        weights, norms = values(kind, shape, dtype, number), torch.rand(shape[1])
        aligned = values("ties", shape, dtype, 99) if restore else None
        for k in {0, 1, shape[1] // 20, shape[1] // 2, shape[1]}:
            expected, found = weights.clone(), weights.cuda()
            taken = reference.select_apply(expected, Choice("row", k, norms), aligned, False)
            on_device = None if aligned is None else aligned.cuda()
            assert ops.select_apply(found, Choice("row", k, norms), on_device, measure=False) == taken, (shape, kind, k)
            assert torch.equal(found.cpu().view(torch.uint8), expected.view(torch.uint8)), (shape, kind, k)
    for bad in (float("nan"), float("inf")):
        weights = torch.ones(3, 70, dtype=dtype, device="cuda")
        weights[1, 69] = bad
        assert not ops.select_apply(weights, Choice("row", 2), measure=False).finite


@gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_on_the_device_are_those_of_float64(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTGUARD_CUDA", "1")
    for shape in ((1, 1), (7, 33), (300, 5000)):
        a, b, counted = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype), torch.rand(shape[0]) < 0.7
        found = ops.square_sums(a.cuda(), counted.cuda()).cpu()
        assert torch.allclose(found, (a.double() ** 2)[counted].sum(0), rtol=1e-12, atol=0)
        pair, expected = ops.pair_statistics(a.cuda(), b.cuda()), reference.pair_statistics(a, b)
        assert (pair.largest, pair.changed, pair.finite) == (expected.largest, expected.changed, True)
        for key in reference.SUMS:
            assert getattr(pair, key) == pytest.approx(getattr(expected, key), rel=1e-12, abs=1e-12 * expected.aa)
