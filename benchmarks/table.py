"""The whole table of limits for this machine: kernels in bf16 and float32, then the rewrite of a checkpoint.

    python benchmarks/table.py                # about ten minutes and 6 GB of disk
    python benchmarks/table.py --kernels      # without the rewrite: about five minutes
    python benchmarks/table.py --smoke        # a few seconds, small: equality, and that it runs

JSON lines first, one a measurement; then the same as a table, with the limits of full sizes and whether each is met.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import bench_select
import bench_stats
import timer
import torch


def kernel_rows(dtypes: list[str], rounds: int, smoke: bool) -> list[dict]:
    rows = []
    for name in dtypes:
        for bench in (bench_select, bench_stats):
            found = bench.measured(getattr(torch, name), rounds, smoke)
            rows += [{**row, "work": f"{row['work']}, {name}"} for row in found]
            timer.print_lines(rows[-len(found) :])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--kernels", action="store_true", help="leave the rewrite out")
    parser.add_argument("--smoke", action="store_true", help="small, for CI: equality, and that it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    timer.print_machine()
    rows = kernel_rows(options.dtypes.split(","), 1 if options.smoke else options.rounds, options.smoke)
    timer.print_table(rows, judged=not options.smoke)
    if not (options.kernels or options.smoke):
        subprocess.run([sys.executable, Path(__file__).with_name("bench_rewrite.py")], check=True)


if __name__ == "__main__":
    main()
