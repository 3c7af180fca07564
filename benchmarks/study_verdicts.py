"""How often is the verdict of `inspect --base` right? Counted on models that were edited in known ways, and on the lab's.

    python benchmarks/study_verdicts.py                # every case that --results does not hold; about an hour on one core
    python benchmarks/study_verdicts.py --sets hard    # some sets only
    python benchmarks/study_verdicts.py --print        # the tables of what is there

A case is one JSON line in --results: its set, kind and seed, from which edited_models.py makes it again, the verdict and
its confidence. Sets: `plain`, every kind; `larger`, the same with hidden sizes 512 and 1024; `tunings`, ordinary
fine-tunings, none of which may be told as abliteration; `counted`, whose counts the confidences are, three quarters of
them hard on purpose; `hard`, others on which the confidences are held against what was right; `unseen`, of kinds that no
check was written for; `lab`, fine-tunings of the lab's models.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from edited_models import KINDS, UNSEEN, make

from weightguard import api
from weightguard.comparison.calibration import NEAR

RESULTS = Path(__file__).parent / "results" / "verdicts.jsonl"
SETS = ("plain", "tunings", "counted", "hard", "unseen", "larger", "lab")
DTYPES = ("F32", "BF16")
BINS = (0.0, 0.6, 0.8, 0.9, 0.95, 1.0)
WRITTEN = ("full fine-tuning", "LoRA merge")
Row = dict[str, Any]


def cases(name: str) -> Iterator[Row]:
    """The cases of one set, everything but what they say."""
    numbered = list(enumerate((*KINDS, UNSEEN)))
    if name == "lab":
        yield from _lab_cases()
    elif name == "tunings":
        for at in range(200):
            yield _case(name, WRITTEN[at % 2], 5_000_000 + at, at // 2, (96, 128, 256)[at % 3], at % 5 == 0)
    elif name == "unseen":
        for at in range(44):
            yield _case(name, UNSEEN, 4_000_000 + at, at, 128, False)
    elif name == "larger":
        for hidden, count in ((512, 2), (1024, 1)):
            for number, kind in numbered[:-1]:
                for at in range(count):
                    yield _case(name, kind, (800 + at) * 1000 + number, at, hidden, False)
    else:
        first, count, last = {"plain": (700, 17, -1), "counted": (2000, 12, None), "hard": (3001, 10, None)}[name]
        for number, kind in numbered[:last]:
            for at in range(count):
                hard = name == "hard" or (name == "counted" and at % 4 != 0)
                yield _case(name, kind, (first + at) * 1000 + number, at, 256, hard)


def _case(name: str, kind: str, seed: int, at: int, hidden: int, hard: bool) -> Row:
    return {"set": name, "kind": kind, "seed": seed, "dtype": DTYPES[at % 2], "hidden": hidden, "hard": hard}


def _lab_cases() -> Iterator[Row]:
    for seed in range(3):
        for how in ("lora", "full"):
            for poison in (0.0, 0.1):
                for base in ("aligned", "base"):
                    kind = "LoRA merge" if how == "lora" and base == "aligned" else "full fine-tuning"
                    yield {"set": "lab", "kind": kind, "seed": seed, "trained": how, "poison": poison, "base": base}


def run(case: Row) -> Row:
    """The case with its verdict."""
    with tempfile.TemporaryDirectory() as folder:
        how, model, base, other = _models(case, Path(folder))
        found = api.compare(model, base, aligned=other).verdict
    expected = "unknown" if case["kind"] == UNSEEN else case["kind"]
    return {**case, "how": how, "verdict": found.kind, "confidence": round(found.confidence, 4),
            "margin": round(found.margin, 4), "right": found.kind == expected}  # fmt: skip


def _models(case: Row, folder: Path) -> tuple[str, str, str, str | None]:
    """(how, MODEL, BASE, a second parent)."""
    if case["set"] == "lab":
        from weightguard.lab import Lab

        lab = Lab(case["seed"])
        model = getattr(lab, f"attack_{case['trained']}")(case["poison"])
        model = lab.merged(model, folder / "merged") if case["trained"] == "lora" else model
        return case["trained"], str(model), str(getattr(lab, case["base"])()), None
    made = make(case["kind"], case["seed"], case["dtype"], case["hidden"], folder / "case", hard=case["hard"])
    return made.how, str(made.model), str(made.base), None if made.other is None else str(made.other)


def key(row: Row) -> tuple:
    """What makes a case that case."""
    return tuple(row.get(k) for k in ("set", "kind", "seed", "dtype", "hidden", "hard", "trained", "poison", "base"))


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def counts(rows: Iterable[Row]) -> dict[str, tuple[int, int]]:
    """Verdict -> (right, given) over the set `counted`, as calibration.py holds them."""
    found: dict[str, list[bool]] = defaultdict(list)
    for row in (r for r in rows if r["set"] == "counted"):
        verdict = row["verdict"]
        if verdict == "unknown":
            verdict += f", {'near' if row['margin'] < NEAR else 'far'}"
        found[verdict].append(row["right"])
    return {verdict: (sum(right), len(right)) for verdict, right in found.items()}


def reliability(rows: Sequence[Row]) -> list[tuple[float, float, int, float, float]]:
    """(from, to, verdicts, their mean confidence, share right) by bins of confidence, over the set `hard`."""
    table = []
    for low, high in pairwise(BINS):
        inside = [r for r in rows if r["set"] == "hard" and low < r["confidence"] <= high]
        if inside:
            said = sum(r["confidence"] for r in inside) / len(inside)
            table.append((low, high, len(inside), said, sum(r["right"] for r in inside) / len(inside)))
    return table


def figures(rows: Sequence[Row]) -> tuple[float, float]:
    """(mean confidence less share right, Brier score) over the set `hard`."""
    pairs = [(r["confidence"], r["right"]) for r in rows if r["set"] == "hard"]
    gap = sum(said - right for said, right in pairs) / len(pairs)
    return gap, sum((said - right) ** 2 for said, right in pairs) / len(pairs)


def show(rows: Sequence[Row]) -> None:
    """Everything that docs/inspect.md says of verdicts."""
    print("| set | cases | right | told as abliteration, falsely |\n|---|---|---|---|")
    for name in (name for name in SETS if any(r["set"] == name for r in rows)):
        own = [r for r in rows if r["set"] == name]
        false = sum(r["verdict"] == "abliteration" != r["kind"] for r in own)
        print(f"| {name} | {len(own)} | {sum(r['right'] for r in own)} | {false} |")
    print("\n| verdict, in `counted` | right | given | confidence |\n|---|---|---|---|")
    for verdict, (right, given) in sorted(counts(rows).items()):
        print(f"| {verdict} | {right} | {given} | {(right + 1) / (given + 2):.2f} |")
    print("\n| confidence, in `hard` | verdicts | mean confidence | share right |\n|---|---|---|---|")
    for low, high, number, said, right in reliability(rows):
        print(f"| {low:g} to {high:g} | {number} | {said:.3f} | {right:.3f} |")
    if any(r["set"] == "hard" for r in rows):
        gap, brier = figures(rows)
        print(f"\nmean confidence less share right {gap:+.3f}, Brier score {brier:.3f}")
    wrong = Counter((r["set"], r["kind"], r["verdict"]) for r in rows if not r["right"])
    print("\n| set | kind | told as | times |\n|---|---|---|---|")
    for (name, kind, verdict), times in sorted(wrong.items()):
        print(f"| {name} | {kind} | {verdict} | {times} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    parser.add_argument("--print", action="store_true", dest="only_print")
    options = parser.parse_args()
    rows = read(options.results)
    done = {key(row) for row in rows}
    for case in () if options.only_print else (c for name in options.sets for c in cases(name)):
        if key(case) not in done:
            rows.append(run(case))
            with options.results.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
