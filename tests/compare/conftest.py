"""The generated cases of benchmarks/edited_models.py."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def loaded(name: str) -> ModuleType:
    """A module of benchmarks/, which is no package; under the name that its neighbours import it by."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def edited_models() -> ModuleType:
    """The generator."""
    return loaded("edited_models")


@pytest.fixture(scope="session")
def study() -> ModuleType:
    """The study of verdicts, which prints what the committed results say."""
    loaded("edited_models")
    return loaded("study_verdicts")


@pytest.fixture(scope="session")
def made(edited_models: ModuleType) -> Callable:
    """make(kind, seed, dtype, hidden, folder) of the generator."""
    return edited_models.make


@pytest.fixture(scope="session")
def kinds(edited_models: ModuleType) -> tuple[str, ...]:
    """Every kind there is a case for."""
    return tuple(edited_models.KINDS)
