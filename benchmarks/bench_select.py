"""Select and apply against a memory copy of the same bytes, torch.topk and a stable sort.

    python benchmarks/bench_select.py                # bf16, 4096 x 11008, 5 %: about two minutes
    python benchmarks/bench_select.py --dtype float32
    python benchmarks/bench_select.py --smoke        # a second, small

One thread, CPU time, best of the rounds. Every implementation is checked against the reference before it is timed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import timer
import torch

from weightguard.kernels import ops
from weightguard.kernels.reference import Choice

# Ratio to memcpy that the compiled kernels are held to without the norms: bf16 (fp16), float32.
LIMITS = {
    "row zero": (2.5, 2.0),
    "matrix zero": (2.5, 1.6),
    "row difference": (4.5, 3.0),
    "matrix difference": (4.5, 3.0),
}


class Case:
    """One matrix W (out, in), its aligned twin, input norms, and 5 % of the entries."""

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, share: float) -> None:
        torch.manual_seed(0)
        self.weights = torch.randn(shape).to(dtype)
        self.aligned = (self.weights.float() + 0.01 * torch.randn(shape)).to(dtype)
        self.norms, self.others = torch.rand(shape[1]) + 0.1, torch.rand(shape[1]) + 0.1
        self.count = {"row": round(share * shape[1]), "matrix": round(share * self.weights.numel())}
        self.edited = torch.empty_like(self.weights)

    def fresh(self) -> None:
        timer.copy(self.edited, self.weights)

    def works(self) -> Iterator[tuple[str, Choice, torch.Tensor | None, bool]]:
        for group, k in self.count.items():
            plain = Choice(group, k, self.norms)
            for measure in (False, True):
                yield f"{group} zero" + ", measured" * measure, plain, None, measure
                yield f"{group} restore" + ", measured" * measure, plain, self.aligned, measure
            yield f"{group} difference", Choice(group, k, self.norms, k, self.others), None, False

    def run(self, choice: Choice, aligned: torch.Tensor | None, measure: bool):
        return ops.select_apply(self.edited, choice, aligned, measure=measure)


def check(case: Case) -> None:
    """Every implementation leaves the same bits and counts the same."""
    for name, choice, aligned, measure in case.works():
        seen = []
        for kernels in timer.implementations():
            case.fresh()
            with timer.implementation(kernels):
                taken = case.run(choice, aligned, measure)
            seen.append((kernels, taken, case.edited.clone()))
        *others, (_, expected, bits) = seen
        for kernels, taken, edited in others:
            assert taken == expected and torch.equal(edited.view(torch.uint8), bits.view(torch.uint8)), (name, kernels)


def topk(case: Case, group: str) -> None:
    scores = case.edited.float().abs() * case.norms
    flat = scores if group == "row" else scores.view(1, -1)
    taken = flat.topk(case.count[group], dim=1, sorted=False).indices
    case.edited.view(flat.shape).scatter_(1, taken, 0)


def stable_sort(case: Case) -> None:
    scores = case.edited.float().abs() * case.norms
    order = scores.sort(dim=1, descending=True, stable=True).indices
    case.edited.scatter_(1, order[:, : case.count["row"]], 0)


def select_rows(case: Case, rounds: int) -> list[dict]:
    works = {("memcpy", ""): lambda: timer.copy(case.edited, case.weights)}
    for kernels in timer.implementations():
        for name, *arguments in case.works():
            works[name, kernels] = timer.under(kernels, lambda a=arguments: case.run(*a))
    fast = {key: work for key, work in works.items() if key[1] != "reference"}
    slow = {key: work for key, work in works.items() if key[1] == "reference"}
    found = timer.best(fast, rounds, case.fresh) | timer.best(slow, 1, case.fresh)
    floor, place = found["memcpy", ""].cpu, case.weights.element_size() == 4

    def limit(name: str, kernels: str) -> float | None:
        if kernels == "reference" and name in ("row zero", "matrix zero"):
            return 40.0
        return LIMITS[name][place] if name in LIMITS and kernels == timer.implementations()[0] else None

    return [timer.row(name, kernels, timing.cpu, floor, "memcpy", limit(name, kernels))
            for (name, kernels), timing in found.items() if kernels]  # fmt: skip


def torch_rows(case: Case, rows: list[dict]) -> list[dict]:
    """How many times faster the best implementation here is than torch."""
    ours = {row["work"]: row["ms"] / 1e3 for row in reversed(rows)}  # the best implementation comes first
    found = timer.best(
        {"row": lambda: topk(case, "row"), "matrix": lambda: topk(case, "matrix"), "sort": lambda: stable_sort(case)},
        1, case.fresh,
    )  # fmt: skip
    return [
        timer.row("torch.topk by row", "torch", found["row"].cpu, ours["row zero"], "row zero", 20, least=True),
        timer.row("stable sort by row", "torch", found["sort"].cpu, ours["row zero"], "row zero", 100, least=True),
        timer.row(
            "topk of the matrix", "torch", found["matrix"].cpu, ours["matrix zero"], "matrix zero", 40, least=True
        ),
    ]


def thread_rows(case: Case, rounds: int) -> list[dict]:
    """Wall time of two threads over that of one, and what a copy gains from two."""

    def on(threads: int, choice: Choice):
        torch.set_num_threads(threads)
        ops.select_apply(case.edited, choice, None, measure=False)
        torch.set_num_threads(1)

    works: dict[tuple[str, int], timer.Work] = {
        ("memcpy", 1): lambda: timer.copy(case.edited, case.weights),
        ("memcpy", 2): lambda: timer.copy_by_two(case.edited, case.weights),
    }
    for group, k in case.count.items():
        for threads in (1, 2):
            works[f"{group} zero", threads] = partial(on, threads, Choice(group, k, case.norms))
    found = timer.best(works, rounds, case.fresh)
    best_kernels = timer.implementations()[0]
    return [
        timer.row(f"{name}, two threads, wall", best_kernels, found[name, 2].wall, found[name, 1].wall,
                  "one thread, wall", None if name == "memcpy" else 1 / 1.7)
        for name, threads in found if threads == 1
    ]  # fmt: skip


def memory_rows(case: Case) -> list[dict]:
    """MB that a selection takes beside the matrix, of the kernels and of torch."""
    allowed = 16 * 2**20 + 0.02 * case.weights.numel() * case.weights.element_size()
    rows = []
    for kernels, limit in ((timer.implementations()[0], allowed), ("reference", 64 * 2**20)):
        for group, k in case.count.items():
            case.fresh()
            select = partial(ops.select_apply, case.edited, Choice(group, k, case.norms), measure=False)
            used = timer.extra_memory(timer.under(kernels, select))
            rows.append({"work": f"extra memory, {group} zero", "kernels": kernels, "against": "MB", "ms": 0.0,
                         "ratio": round(used / 2**20, 1), "limit": round(limit / 2**20, 1)})  # fmt: skip
    return rows


def measured(dtype: torch.dtype, rounds: int, smoke: bool, share: float = 0.05) -> list[dict]:
    """All rows of this benchmark, one thread."""
    case = Case((64, 1100) if smoke else (4096, 11008), dtype, share)
    check(case)
    rows = select_rows(case, rounds)
    return [*rows, *torch_rows(case, rows), *thread_rows(case, rounds), *memory_rows(case)]


def main() -> None:
    timer.run(__doc__, measured)


if __name__ == "__main__":
    main()
