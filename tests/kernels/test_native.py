"""Which implementation runs: the environment decides, and a demanded build that is missing is an error."""

from __future__ import annotations

import ctypes

import pytest
import torch

from weightguard.errors import SystemFailure, UsageError
from weightguard.kernels import native, ops


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load", lambda: (None, "the package was built without a C++ compiler"))


def test_a_missing_build_is_the_reference_unless_it_is_demanded(missing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEIGHTGUARD_NATIVE", raising=False)
    assert native.compiled() is None and native.available() == ()
    assert native.status() == "torch reference (the package was built without a C++ compiler)"
    assert ops.is_finite(torch.ones(3))
    monkeypatch.setenv("WEIGHTGUARD_NATIVE", "1")
    with pytest.raises(SystemFailure, match="without a C"):
        ops.is_finite(torch.ones(3))


def test_zero_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTGUARD_NATIVE", "0")
    assert native.compiled() is None
    assert native.status() == "torch reference (WEIGHTGUARD_NATIVE=0)"


def test_values_that_mean_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTGUARD_NATIVE", "yes")
    with pytest.raises(UsageError, match="WEIGHTGUARD_NATIVE='yes'"):
        native.compiled()
    monkeypatch.delenv("WEIGHTGUARD_NATIVE")
    monkeypatch.setenv("WEIGHTGUARD_ISA", "sse9")
    with pytest.raises(UsageError, match="sse9"):
        native.isa()


def test_a_build_that_does_not_load_or_is_of_other_sources(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEIGHTGUARD_NATIVE", raising=False)
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    assert native._load.__wrapped__()[1] == "the package was built without a C++ compiler"
    name = f"_native{native.EXTENSION_SUFFIXES[0]}"
    (tmp_path / name).write_bytes(b"not a library")
    assert f"{name} does not load" in native._load.__wrapped__()[1]


def test_structures_have_the_size_of_the_compiled_ones() -> None:
    """8-byte fields first, so that no padding hides a difference; the numbers are those of cpp_ext/cpu/abi.h."""
    structures = (native._Select, native._Pair, native._Squares, native._Products)
    assert [ctypes.sizeof(each) for each in structures] == [160, 136, 64, 112]
    if native.compiled() is None:
        pytest.skip(f"no compiled kernels: {native.status()}")
    assert native.available()[0] == "portable" and native.status().startswith("compiled kernels, ")


def test_an_instruction_set_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "available", lambda: ("portable",))
    monkeypatch.setenv("WEIGHTGUARD_ISA", "avx512")
    with pytest.raises(SystemFailure, match="this machine has portable"):
        native.isa()


def test_statuses_of_the_kernels() -> None:
    assert native._finished("op", 0) and not native._finished("op", native.NOT_FINITE)
    with pytest.raises(MemoryError):
        native._finished("op", native.NO_MEMORY)
    with pytest.raises(RuntimeError, match="op"):
        native._finished("op", -2)


def test_only_what_the_kernels_can_read_is_given_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "compiled", lambda: ctypes.CDLL(None))
    good = torch.ones(4, 6)
    assert (
        native.takes(good) and native.takes(good.T, good.T) and native.takes(good, None) and native.takes(good[1:, 2:])
    )
    assert not native.takes(good.double())
    assert not native.takes(good, good.bfloat16())
    assert not native.takes(good[:, ::2])
    assert not native.takes(torch.ones(1, 6).expand(4, 6))
    assert not native.takes(torch.ones(9).as_strided((4, 6), (1, 1)))
    assert not native.takes(good.to("meta"))
