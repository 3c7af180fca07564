"""What every method must keep, whatever it computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import load_file

import weightguard as wg
from weightguard.methods import METHODS, method_class
from weightguard.plan import Plan

WITH_STRENGTH = [name for name in METHODS if hasattr(method_class(name), "with_strength")]
# Strength 1 takes all of the update away; the others move it elsewhere.
CUTTING = ("antidote", "magnitude", "random", "scale")
# Where the default selects nothing of these random updates.
DEFAULTS = {"safe-lora": {"number": 9}, "undo-abliteration": {"coherence": 0.1}}
# What a strength does not stand for, and goes with it.
KEPT = {"undo-abliteration": {"coherence": 0.1}}


def references(method: str, pico: Path) -> dict[str, str]:
    """What the method needs: option -> file or directory."""
    needed = {
        "harmful": ("stats", "stats"),
        "unaligned": ("unaligned", "unaligned"),
        "neurons": ("neurons", f"neurons-{method}"),
        "safety": ("safety", "safety.safetensors"),
        "benign": ("benign", "benign.safetensors"),
    }
    return {option: str(pico / name) for option, name in (needed[need] for need in method_class(method).NEEDS)}


def given(method: str, pico: Path, strength: float | None = None) -> dict[str, Any]:
    options = DEFAULTS.get(method, {}) if strength is None else KEPT.get(method, {}) | {"strength": strength}
    return {"method": method, "aligned": str(pico / "aligned"), "offline": True, **references(method, pico), **options}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


def test_inputs_are_not_touched(method: str, pico: Path, tmp_path: Path, digest_of) -> None:
    before = digest_of(pico / "tuned"), digest_of(pico / "aligned")
    wg.repair(str(pico / "tuned"), out=tmp_path / "out", **given(method, pico))
    assert (digest_of(pico / "tuned"), digest_of(pico / "aligned")) == before


def test_same_plan_twice_and_round_trip(method: str, pico: Path, tmp_path: Path) -> None:
    first = wg.repair(str(pico / "tuned"), dry_run=True, save_plan=tmp_path / "plan", **given(method, pico)).plan
    second = wg.repair(str(pico / "tuned"), dry_run=True, **given(method, pico)).plan
    assert first.digest() == second.digest() == Plan.load(tmp_path / "plan").digest()
    assert first.edits


def test_a_saved_plan_replays_to_the_same_weights(method: str, pico: Path, tmp_path: Path, digest_of) -> None:
    wg.repair(str(pico / "tuned"), out=tmp_path / "a", save_plan=tmp_path / "plan", **given(method, pico))
    sources = {key: value for key, value in given(method, pico).items() if key in ("aligned", "unaligned")}
    wg.apply(tmp_path / "plan", str(pico / "tuned"), out=tmp_path / "b", **sources)
    assert digest_of(tmp_path / "a")["model.safetensors"] == digest_of(tmp_path / "b")["model.safetensors"]


@pytest.mark.parametrize("method", WITH_STRENGTH)
def test_strength_zero_is_the_empty_plan(method: str, pico: Path, tmp_path: Path, digest_of) -> None:
    result = wg.repair(str(pico / "tuned"), out=tmp_path / "out", **given(method, pico, strength=0))
    assert not result.plan.edits
    assert digest_of(tmp_path / "out")["model.safetensors"] == digest_of(pico / "tuned")["model.safetensors"]


@pytest.mark.parametrize("method", CUTTING)
def test_full_strength_gives_the_aligned_linears(method: str, pico: Path, tmp_path: Path) -> None:
    result = wg.repair(str(pico / "tuned"), out=tmp_path / "out", **given(method, pico, strength=1))
    out, aligned = load_file(tmp_path / "out/model.safetensors"), load_file(pico / "aligned/model.safetensors")
    for name in result.plan.edits:
        numpy.testing.assert_array_equal(out[name], aligned[name])


def test_names_shapes_and_dtypes_stay_and_values_are_finite(method: str, pico: Path, tmp_path: Path) -> None:
    result = wg.repair(str(pico / "tuned"), out=tmp_path / "out", **given(method, pico))
    before, after = load_file(pico / "tuned/model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert set(result.plan.edits) <= set(before)
    assert {n: (t.shape, t.dtype) for n, t in before.items()} == {n: (t.shape, t.dtype) for n, t in after.items()}
    assert all(numpy.isfinite(t).all() for t in after.values())


def test_the_manifest_counts_what_changed(method: str, pico: Path, tmp_path: Path) -> None:
    result = wg.repair(str(pico / "tuned"), out=tmp_path / "out", **given(method, pico))
    before, after = load_file(pico / "tuned/model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    aligned = load_file(pico / "aligned/model.safetensors")
    assert result.manifest is not None
    for name, said in result.manifest.edits.items():
        b, a, origin = (x[name].astype(numpy.float64) for x in (before, after, aligned))
        assert said["changed"] == (b != a).sum()
        assert said["change_norm"] == pytest.approx(numpy.linalg.norm(a - b), rel=1e-12)
        assert said["weight_norm"] == pytest.approx(numpy.linalg.norm(b), rel=1e-12)
        if result.plan.target == "delta":
            assert said["update_norm_before"] == pytest.approx(numpy.linalg.norm(b - origin), rel=1e-12)
            assert said["update_norm_after"] == pytest.approx(numpy.linalg.norm(a - origin), rel=1e-12)


def test_two_runs_write_the_same_bytes(method: str, pico: Path, tmp_path: Path, digest_of) -> None:
    for name in ("one", "two"):
        wg.repair(str(pico / "tuned"), out=tmp_path / name, **given(method, pico))
    assert digest_of(tmp_path / "one") == digest_of(tmp_path / "two")


def test_random_takes_other_entries_under_another_seed(pico: Path, tmp_path: Path, digest_of) -> None:
    for seed in (0, 1):
        wg.repair(str(pico / "tuned"), out=tmp_path / str(seed), seed=seed, **given("random", pico))
    assert digest_of(tmp_path / "0")["model.safetensors"] != digest_of(tmp_path / "1")["model.safetensors"]
