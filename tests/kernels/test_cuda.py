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
MORE = (
    ("float", (8, 352, 2), 0),
    ("Float16", (1, 32, 32), 1),
    ("float", (7, 1024, 1), 1),
    ("Bfloat16", (4, 1024, 1), 0),
)
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: the kernels were compiled only")


@pytest.mark.parametrize(
    ("kind", "width", "flag"),
    [("Bfloat16", (4, 352, 2), 1), *(pytest.param(*each, marks=pytest.mark.full) for each in MORE)],
)
def test_every_source_compiles_for_every_target(kind: str, width: tuple[int, ...], flag: int, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc here")
    assert sorted(path.stem for path in device.sources().glob("*.cu")) == sorted(SOURCES)
    everything = tmp_path / "everything.cu"  # in one file: a compiler takes most of its time to start
    within = (f'namespace in_{name} {{\n#include "{device.sources() / name}.cu"\n}}\n' for name in SOURCES)
    everything.write_text(f'#include "{device.sources()}/values.cuh"\n' + "".join(within))
    constants = dict(zip(("SPANS", "THREADS", "BLOCKS"), width, strict=True), TYPE=kind, RESTORE=flag, ALIGNED=flag,
                     BUFFERS=1 + flag, COLUMNS=width[0] * width[1] * 4 - 3 * (1 - flag))  # fmt: skip
    command = [nvcc, *device.OPTIONS, "-Werror", "all-warnings", *(f"-D{key}={value}" for key, value in constants.items()),
               *(f"-gencode=arch=compute_{each},code=sm_{each}" for each in TARGETS),
               "-fatbin", everything, "-o", tmp_path / "out"]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_nvrtc_compiles_them_from_the_shipped_text() -> None:
    try:
        device._nvrtc()
    except SystemFailure:
        pytest.skip("no NVRTC here")
    assert device.compiled("pair", "sm_90", (("TYPE", "float"), ("ALIGNED", 0))).startswith(b"\x7fELF")


@pytest.mark.full
def test_the_wheel_holds_the_sources(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        held = {name.removeprefix("weightguard/kernels/cuda/") for name in wheel.namelist()}
    assert {*(f"{name}.cu" for name in SOURCES), "values.cuh"} <= held


def test_tensors_elsewhere_are_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEIGHTGUARD_CUDA", raising=False)
    assert not device.takes(torch.ones(2, 2))
    monkeypatch.setenv("WEIGHTGUARD_CUDA", "yes")
    with pytest.raises(UsageError, match="WEIGHTGUARD_CUDA='yes'"):
        device.takes(torch.ones(2, 2))


def test_a_row_of_any_width_has_a_block_that_holds_it_or_none() -> None:
    for columns, dtype, restore in product((*range(1, 70), 1000, 4096, 11008, 14336, 28672), DTYPES, (False, True)):
        width = device.width_of(columns, dtype, restore=restore)
        if width is None:
            assert restore and columns == 28672 and dtype == torch.float32  # two rows of 112 KB
            continue
        keys = width.spans * 16 // dtype.itemsize
        assert columns <= keys * width.threads < columns + 32 * keys and keys <= 32
        assert width.threads % 32 == 0 and 32 <= width.threads <= 1024 and width.threads * width.blocks <= 2048
        assert width.size == (1 + restore) * 16 * width.spans * width.threads
        assert 0 < width.buffers * width.size * width.blocks <= device.SHARED
    assert device.width_of(32769, torch.bfloat16) is None  # torch does it


@gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_selection_on_the_device_is_the_reference(dtype: torch.dtype) -> None:
    shapes = ((1, 1), (3, 15), (3, 16), (5, 17), (700, 64), (5, 257), (9, 4096), (1100, 11008), (2, 28672), (2, 32768))
    kinds = ("ties", "normal", "sparse", "tiny", "constant", "zero", "scaled")
    for number, (shape, kind, restore) in enumerate(product(shapes, kinds, (False, True))):
        weights, norms = matrix(kind, shape, dtype, number), torch.rand(shape[1])
        aligned = values("ties", shape, dtype, 99) if restore else None
        for k, given in product({0, 1, shape[1] // 20, shape[1] // 2, shape[1]}, (norms, None)):
            same_as_reference(weights, Choice("row", k, given), aligned)


def matrix(kind: str, shape: tuple[int, int], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """values, and: "constant" ties alone, "zero", "scaled" rows of very different sizes."""
    if kind in ("constant", "zero"):
        return torch.full(shape, 0.5 * (kind == "constant"), dtype=dtype)
    if kind == "scaled":
        return (values("normal", shape, torch.float32, seed) * 2.0 ** (torch.arange(shape[0]) % 9)[:, None]).to(dtype)
    return values(kind, shape, dtype, seed)


def same_as_reference(weights: torch.Tensor, choice: Choice, aligned: torch.Tensor | None, shift: int = 0) -> None:
    expected = weights.clone()
    taken = reference.select_apply(expected, choice, aligned, False)
    buffer = torch.empty(weights.numel() + shift, dtype=weights.dtype, device="cuda")
    found = buffer[shift:].view(weights.shape)
    found.copy_(weights)
    assert device.takes(found)
    on_device = None if aligned is None else aligned.cuda()
    assert ops.select_apply(found, choice, on_device, measure=False) == taken, (weights.shape, choice)
    assert torch.equal(found.cpu().view(torch.uint8), expected.view(torch.uint8)), (weights.shape, choice)


@gpu
def test_what_the_kernels_do_not_take_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = torch.randn(2, 40000, device="cuda")
    narrow = torch.randn(4, 64, device="cuda")
    for weights, off in ((wide, ""), (narrow.T, ""), (narrow.double(), ""), (narrow, "0")):
        monkeypatch.setenv("WEIGHTGUARD_CUDA", off)
        expected = weights.cpu()
        taken = reference.select_apply(expected, Choice("row", 3, torch.ones(weights.shape[1])), None, False)
        assert ops.select_apply(weights, Choice("row", 3, torch.ones(weights.shape[1])), measure=False) == taken
        assert torch.equal(weights.cpu(), expected)


@gpu
def test_rows_that_start_anywhere_are_selected_from_all_the_same() -> None:
    for dtype, shift, columns in product(DTYPES, (1, 3), (33, 4096)):
        weights = values("normal", (5, columns), dtype, shift)
        same_as_reference(weights, Choice("row", columns // 5, torch.rand(columns)), None, shift)
        same_as_reference(weights, Choice("row", columns // 5), values("ties", (5, columns), dtype, 7), shift)


@gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_bad_key_anywhere_is_told(dtype: torch.dtype) -> None:
    for bad, columns, at, k in product((float("nan"), float("inf")), (1, 70, 4096), (0, -1), (0, 1)):
        weights = torch.ones(300, columns, dtype=dtype, device="cuda")
        weights[at, at] = bad
        assert not ops.select_apply(weights, Choice("row", k), measure=False).finite


@gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_on_the_device_are_those_of_float64(dtype: torch.dtype) -> None:
    for rows, columns, shift in product((1, 7, 300, 2048), (1, 33, 256, 4096, 5000), (0, 1)):
        a, b, counted = (
            torch.randn(rows, columns).to(dtype),
            torch.randn(rows, columns).to(dtype),
            torch.rand(rows) < 0.7,
        )
        on_device = torch.empty(2, a.numel() + shift, dtype=dtype, device="cuda")[:, shift:].unbind()
        x, y = (held.view(a.shape).copy_(given) for held, given in zip(on_device, (a, b), strict=True))
        found = ops.square_sums(x, counted.cuda())
        assert torch.allclose(found.cpu(), (a.double() ** 2)[counted].sum(0), rtol=1e-12, atol=0)
        assert torch.equal(found, ops.square_sums(x, counted.cuda()))
        pair, expected = ops.pair_statistics(x, y), reference.pair_statistics(a, b)
        assert (pair.largest, pair.changed, pair.finite) == (expected.largest, expected.changed, True)
        for key in reference.SUMS:
            assert getattr(pair, key) == pytest.approx(getattr(expected, key), rel=1e-12, abs=1e-12 * expected.aa)
        x[-1, -1] = float("nan")
        assert not ops.pair_statistics(x, y).finite
