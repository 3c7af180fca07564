"""The line that does a run again holds whatever changes its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import weightguard as wg


def test_how_the_model_was_run_is_in_the_line(checkpoint: Callable[..., Path], data: Mapping[str, Path]) -> None:
    given = {
        "method": "antidote",
        "target": "weight",
        "harmful": str(data["harmful"]),
        "ratio": 0.1,
        "threads": 1,
        "dry_run": True,
    }
    usual = wg.repair(checkpoint("llama"), **given).report.command
    other = wg.repair(checkpoint("llama"), max_length=5, dtype="bfloat16", **given).report.command
    assert "--dtype" not in usual and "--max-length" not in usual
    assert other == usual.replace(" -o OUT", " --dtype bfloat16 --max-length 5 -o OUT")
