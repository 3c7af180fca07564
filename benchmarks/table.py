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


def kernel_rows(rounds: int, smoke: bool) -> list[dict]:
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        for bench in (bench_select, bench_stats):
            name = str(dtype).removeprefix("torch.")
            rows += [{**row, "work": f"{row['work']}, {name}"} for row in bench.measured(dtype, rounds, smoke)]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--kernels", action="store_true", help="leave the rewrite out")
    parser.add_argument("--smoke", action="store_true", help="small, for CI: equality, and that it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    timer.print_machine()
    timer.print_rows(kernel_rows(1 if options.smoke else options.rounds, options.smoke), judged=not options.smoke)
    if not (options.kernels or options.smoke):
        subprocess.run([sys.executable, Path(__file__).with_name("bench_rewrite.py")], check=True)


if __name__ == "__main__":
    main()
