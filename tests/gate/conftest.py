"""Reports and policies made by hand, and a folder in which a gate runs without any model that could be loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weightguard.measurement import KINDS, Measurement, Report, Subject
from weightguard.verdict import Binding, Policy

FILES = {"config.json": "a" * 64, "model.safetensors": "b" * 64}
MODEL = Subject("model", None, FILES)


@pytest.fixture
def measurement() -> Callable[..., Measurement]:
    def build(
        name: str, value: float | None, low: float | None, high: float | None, n: int = 200, **said: Any
    ) -> Measurement:
        kind = KINDS[name]
        return Measurement(
            name, value, n, low, high, kind.better, kind.unit, **{"judge": "j", "judge_revision": "1", **said}
        )

    return build


@pytest.fixture
def report() -> Callable[..., Report]:
    def build(*measurements: Measurement, **said: Any) -> Report:
        given = {"reference": None, "data": {}, "settings": {"seed": 0}, **said}
        return Report(MODEL, measurements=measurements, **given)

    return build


@pytest.fixture
def policy() -> Callable[[str], Policy]:
    def build(text: str) -> Policy:
        return Policy.parse(('format = 1\nname = "test"\n' + text).encode(), "p.toml")

    return build


@pytest.fixture
def binding() -> Binding:
    return Binding(MODEL)


@pytest.fixture
def checkpoint_folder(tmp_path: Path) -> Path:
    """A directory that opens as a checkpoint: one tensor, a config."""
    import numpy
    from safetensors.numpy import save_file

    folder = tmp_path / "model"
    (folder / "extra").mkdir(parents=True)
    save_file({"w": numpy.ones((2, 2), "f4")}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "extra" / "notes.txt").write_text("notes")
    return folder
