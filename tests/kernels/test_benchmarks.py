"""The table of limits runs, small: every kernel is equal to the reference before it is timed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TABLE = Path(__file__).parents[2] / "benchmarks" / "table.py"


def test_the_table_runs_and_has_every_row() -> None:
    run = subprocess.run([sys.executable, str(TABLE), "--smoke"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")][1:]
    limited = " ".join(row["work"] for row in rows if row["limit"] is not None)
    for work in ("row zero", "matrix zero", "difference", "square sums", "Safe LoRA", "pair statistics", "two threads",
                 "extra memory", "topk by row", "stable sort", "C formed"):  # fmt: skip
        assert work in limited, work
