"""Digests that must never move: repaired weights of an integer checkpoint under committed statistics.

If one changes, every user's repair changes: say so in the changelog, or undo it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import weightguard as wg

ANTIDOTE = {"method": "antidote"}
CASES: dict[str, dict[str, Any]] = {
    "row exact": {**ANTIDOTE, "ratio": 0.25},
    "matrix exact": {**ANTIDOTE, "ratio": 0.25, "group": "matrix"},
    "global exact": {**ANTIDOTE, "ratio": 0.25, "group": "global"},
    "row reference": {**ANTIDOTE, "ratio": 0.1, "rounding": "reference"},
    "weight row reference": {**ANTIDOTE, "ratio": 0.1, "rounding": "reference", "group": "row", "target": "weight"},
    "weight default": {**ANTIDOTE, "ratio": 0.01, "target": "weight"},
    "scope q,k": {**ANTIDOTE, "ratio": 0.5, "scope": "q,k"},
    "magnitude": {"method": "magnitude"},
    "random": {"method": "random"},
    "scale": {"method": "scale", "strength": 0.7},
    "safe-lora": {"method": "safe-lora", "number": 9},
    "safe-lora exact": {"method": "safe-lora", "number": 5, "projector": "exact", "projector_rank": 3},
}


def golden() -> dict[str, str]:
    lines = (Path(__file__).parent / "golden.txt").read_text().splitlines()
    return dict(reversed(line.split("  ", 1)) for line in lines)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("threads", "native"), [(1, ""), (2, ""), (1, "0")])
def test_golden_digest(
    case: str, threads: int, native: str, pico: Path, tmp_path: Path, digest_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On any thread count, with the compiled kernels (where they were built) and without."""
    monkeypatch.setenv("WEIGHTGUARD_NATIVE", native)
    assert measured(case, pico, tmp_path, digest_of, threads) == golden()[case]


def measured(case: str, pico: Path, tmp_path: Path, digest_of, threads: int) -> str:
    options = CASES[case]
    data = {"stats": pico / "stats"} if options["method"] == "antidote" else {}
    data |= {"unaligned": str(pico / "unaligned")} if options["method"] == "safe-lora" else {}
    aligned = {} if options.get("target") == "weight" else {"aligned": str(pico / "aligned")}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        wg.repair(str(pico / "tuned"), out=tmp_path / "out", offline=True, **options, **data, **aligned)
    finally:
        torch.set_num_threads(before)
    return digest_of(tmp_path / "out")["model.safetensors"]


def test_the_inputs_are_the_committed_ones(pico: Path, digest_of) -> None:
    found = {f"input {path}": digest_of(pico / path)["model.safetensors"] for path in ("tuned", "aligned", "unaligned")}
    for case, digest in found.items():
        assert digest == golden()[case]
