"""The timer of all kernel benchmarks: rounds that interleave what is compared, the best of each, ratios to a floor.

Everything is timed in one process and one run, because the memory of a shared machine is faster in some minutes than in
others: a ratio within a round holds where a time does not.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import torch

from weightguard.kernels import native

Work = Callable[[], object]
_C = ctypes.CDLL(None)
for _name in ("memcpy", "memcmp"):
    getattr(_C, _name).argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


@dataclass
class Timing:
    """Best of the rounds, seconds; CPU time is that of all threads."""

    cpu: float = float("inf")
    wall: float = float("inf")


def best(works: Mapping[str, Work], rounds: int, before: Work = lambda: None) -> dict[str, Timing]:
    """Time each work `rounds` times in turn, after one round that is not counted; `before` runs ahead, untimed."""
    found = {name: Timing() for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            before()
            cpu, wall = time.process_time(), time.perf_counter()
            work()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if number:
                found[name] = Timing(min(found[name].cpu, cpu), min(found[name].wall, wall))
    return found


def copy(to: torch.Tensor, source: torch.Tensor) -> None:
    """memcpy of the C library: the floor of what writes."""
    _C.memcpy(to.data_ptr(), source.data_ptr(), source.numel() * source.element_size())


def copy_by_two(to: torch.Tensor, source: torch.Tensor) -> None:
    """The same by two threads, half each: what two threads can gain where the memory is the limit."""
    halves = zip(to.flatten().chunk(2), source.flatten().chunk(2), strict=True)
    threads = [Thread(target=copy, args=half) for half in halves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def read_both(a: torch.Tensor, b: torch.Tensor) -> None:
    """memcmp of two equal tensors, which reads all of both: the floor of what compares."""
    assert _C.memcmp(a.data_ptr(), b.data_ptr(), a.numel() * a.element_size()) == 0


def extra_memory(work: Work) -> int:
    """Bytes by which the resident memory of this process peaks above where it stood."""
    work()  # what is loaded at the first call is no part of it; what malloc keeps for the next is given back
    _C.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    start = _status("VmRSS")
    work()
    return _status("VmHWM") - start


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


@contextmanager
def implementation(name: str):
    """Inside, the kernels run as "reference", "portable", "avx2" or "avx512"."""
    chosen = (
        {"WEIGHTGUARD_NATIVE": "0"} if name == "reference" else {"WEIGHTGUARD_NATIVE": "1", "WEIGHTGUARD_ISA": name}
    )
    before = {key: os.environ.get(key) for key in ("WEIGHTGUARD_NATIVE", "WEIGHTGUARD_ISA")}
    os.environ.update(chosen)
    yield
    for key, value in before.items():
        os.environ.pop(key, None)
        if value is not None:
            os.environ[key] = value


def under(name: str, work: Work) -> Work:
    """The work, run by that implementation."""

    def run() -> object:
        with implementation(name):
            return work()

    return run


def implementations() -> tuple[str, ...]:
    """All that this machine has, the best one first."""
    return (*reversed(native.available()), "reference")


def print_machine() -> None:
    model = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    print(json.dumps({"machine": model or platform.machine(), "cpus": os.cpu_count(), "torch": torch.__version__,
                      "kernels": native.status(), "threads": torch.get_num_threads()}))  # fmt: skip


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def print_rows(rows: Iterable[Mapping[str, object]], *, judged: bool = True, clock: str = "CPU") -> None:
    """One JSON line a row, then the same as a table."""
    rows = list(rows)
    print_lines(rows)
    print_table(rows, judged=judged, clock=clock)


def print_lines(rows: Iterable[Mapping[str, object]]) -> None:
    for row in rows:
        print(json.dumps(row), flush=True)


def print_table(rows: Iterable[Mapping[str, object]], *, judged: bool = True, clock: str = "CPU") -> None:
    """A row: see `row`. Limits are for full sizes: judged or not."""
    print(f"\n| {'work':36} | {'kernels':9} | {clock + ' ms':>8} | {'ratio':>7} | {'limit':>9} | {'met':3} | against")
    for row in rows:
        limit = "" if row["limit"] is None else f"{'>=' if row.get('least') else '<='} {row['limit']:.2f}"
        print(f"| {row['work']:36} | {row['kernels']:9} | {row['ms']:8.2f} | {row['ratio']:7.2f} | {limit:>9} "
              f"| {met(row) if judged else '':3} | {row['against']}")  # fmt: skip


def met(row: Mapping[str, object]) -> str:
    """ "yes", "no", or nothing where no limit is set."""
    if row["limit"] is None:
        return ""
    ratio, limit = float(str(row["ratio"])), float(str(row["limit"]))
    return "yes" if (ratio >= limit if row.get("least") else ratio <= limit) else "no"


def row(
    work: str, kernels: str, seconds: float, floor: float, against: str, limit: float | None = None, least: bool = False
) -> dict:
    """Times of the floor that the work takes; `limit` at most, with `least` at least."""
    return {"work": work, "kernels": kernels, "ms": round(seconds * 1e3, 3), "against": against,
            "ratio": round(seconds / floor, 4), "limit": limit, "least": least}  # fmt: skip


def run(doc: str | None, measured: Callable[[torch.dtype, int, bool], list[dict]]) -> None:
    """The command line of a kernel benchmark: measured(dtype, rounds, smoke) gives its rows."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--smoke", action="store_true", help="small, for CI: equality, and that it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print_machine()
    print_rows(
        measured(getattr(torch, options.dtype), 1 if options.smoke else options.rounds, options.smoke),
        judged=not options.smoke,
    )
