"""Where the time of a whole `repair` and a whole `inspect --base` goes, by function of weightguard and of what it calls.

    python benchmarks/where.py            # 0.4 GB of weights, about a minute
    python benchmarks/where.py --smoke

Own time in seconds (cProfile, one thread), the largest first.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
from collections.abc import Callable
from pathlib import Path

import bench_rewrite
import timer
import torch

import weightguard as wg

ROWS = 12


def profiled(name: str, work: Callable[[], object]) -> None:
    profile = cProfile.Profile()
    profile.runcall(work)
    stats = pstats.Stats(profile)
    print(f"\n{name}: {stats.total_tt:.2f} s")
    spent = sorted(stats.stats.items(), key=lambda item: -item[1][2])
    for (file, _, function), (_, calls, own, _, _) in spent[:ROWS]:
        where = "" if file == "~" else f" ({Path(file).parent.name}/{Path(file).name})"
        print(f"{own / stats.total_tt:6.1%} {own:7.2f} s {calls:8} calls  {function.strip('<>')}{where}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="small")
    options = parser.parse_args()
    torch.set_num_threads(1)
    timer.print_machine()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        bench_rewrite.build(root, *((64, 96, 2) if options.smoke else (2048, 5632, 4)))
        tuned, aligned = str(root / "tuned"), str(root / "aligned")

        def repair() -> None:
            wg.repair(
                tuned,
                method="antidote",
                aligned=aligned,
                stats=root / "stats",
                out=root / "out",
                ratio=0.25,
                offline=True,
            )

        profiled("repair, antidote on the delta, 0.25", repair)
        profiled("inspect, against the base", lambda: wg.compare(tuned, aligned, offline=True))


if __name__ == "__main__":
    main()
