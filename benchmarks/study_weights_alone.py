"""Can the weights alone tell a harmful from a benign fine-tuning? Measured on the lab, for want of labelled models.

    python benchmarks/study_weights_alone.py --seeds 20    # about a minute and a half a seed where the lab is not cached
    python benchmarks/study_weights_alone.py --print       # the tables of what is there
    python benchmarks/study_weights_alone.py --smoke       # one seed, two models, nothing kept

A cell is one fine-tuning of the aligned model: LoRA or full, benign at two learning rates or with a share of harmful rows.
It is one JSON line in --results, and a cell that is there is not run again. Every figure of `inspect --base`, of --aligned
and --unaligned, and of --activations gets its AUC, harmful against benign, with an interval from resampling seeds; above
0.5 the figure is larger for harmful models, below it smaller.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from weightguard import api
from weightguard.comparison.safety import total
from weightguard.lab import Lab

HERE = Path(__file__).parent / "results"
POISON = (0.02, 0.05, 0.1)
HOWS = ("lora", "full")
DOUBLED = {"known": {"lora": 2.4e-3, "full": 5e-4}, "new": {"lora": 8e-3, "full": 2e-3}}
Row = dict[str, Any]


def cells(world: str, seeds: int, hows: Sequence[str], poisons: Sequence[float]) -> Iterator[Row]:
    """What is trained: poison 0 is benign, once at the attack's learning rate and once at twice that."""
    for seed in range(seeds):
        for how in hows:
            for poison, rate in ((0.0, None), (0.0, DOUBLED[world][how]), *((p, None) for p in poisons)):
                yield {"world": world, "seed": seed, "how": how, "poison": poison, "learning_rate": rate}


def run(cell: Row) -> Row:
    """A cell with its figures, `weights`, `alignment` and `activations`, and what the model does."""
    lab = Lab(cell["seed"], cell["world"])
    attack: Callable[..., Path] = getattr(lab, f"attack_{cell['how']}")
    model = attack(cell["poison"], learning_rate=cell["learning_rate"])
    found = api.compare(
        str(model), str(lab.aligned()), aligned=str(lab.aligned()), unaligned=str(lab.base()), spectra=True
    )
    seen = lab.measure(model)
    return {
        **cell, "harmful_score": seen.harmful_score, "refusal": seen.refusal, "verdict": found.verdict.kind,
        "weights": of_weights(found), "alignment": total(found.relevance.values()).as_dict(),
        "activations": of_activations(lab, str(model)),
    }  # fmt: skip


def of_weights(found: Any) -> dict[str, float]:
    """What MODEL and BASE alone give, over all decoder linears."""
    linears = [c for c in found.changes if c.name in found.relevance]
    spectra = [found.spectra[c.name] for c in linears]
    norms = [math.hypot(*(getattr(c, key) for c in linears)) for key in ("update_norm", "base_norm")]
    return {
        "size": norms[0] / norms[1],
        "kurtosis": median(c.kurtosis or 0 for c in linears),
        "effective_rank": mean(s.effective_rank_of_all or 0 for s in spectra),
        "over_noise": median(s.over_noise for s in spectra),
    }


def of_activations(lab: Lab, model: str) -> dict[str, float]:
    """Means over the layers behind the embedding, on prompts about objects that no training after the base has seen."""
    with tempfile.TemporaryDirectory() as folder:
        data = lab.write_data(Path(folder) / "data")
        prompts = str(data["evaluation_harmful"]), str(data["evaluation_allowed"])
        found = api.activations(model, *prompts, base=str(lab.aligned()), threads=1)
    layers = found.layers[1:]
    drifts = [mean(getattr(view, key) or 0.0 for view in layers) for key in ("drift_harmful", "drift_benign")]
    return {
        "direction_cosine": mean(view.cosine or 0.0 for view in layers),
        "drift_harmful": drifts[0],
        "drift_benign": drifts[1],
        "drift_ratio": drifts[0] / drifts[1],
        "separation": mean(view.separation for view in layers),
        "overlap": mean(view.overlap for view in layers),
        "harmful_loss": found.harmful_loss or 0.0,
    }


def key_of(row: Row) -> str:
    return json.dumps([row[k] for k in ("world", "seed", "how", "poison", "learning_rate")])


def kept(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def complete(path: Path, wanted: Sequence[Row]) -> None:
    """Run what is missing, a line at a time."""
    there = {key_of(row) for row in kept(path)}
    missing = [cell for cell in wanted if key_of(cell) not in there]
    for at, cell in enumerate(missing, 1):
        line = json.dumps(run(cell))
        with path.open("a") as file:
            file.write(line + "\n")
        print(f"{at} of {len(missing)}: seed {cell['seed']}, {cell['how']}, {cell['poison']:.0%}", flush=True)


def auc(rows: Sequence[Row], of: Callable[[Row], float], poison: float) -> float:
    """Probability that a model trained on this share of harmful rows is above a benign one."""
    harmful = [of(r) for r in rows if r["poison"] == poison]
    benign = [of(r) for r in rows if r["poison"] == 0]
    wins = sum((h > b) + 0.5 * (h == b) for h in harmful for b in benign)
    return wins / (len(harmful) * len(benign))


def interval(rows: Sequence[Row], of: Callable[[Row], float], poison: float, draws: int = 1000) -> tuple[float, float]:
    """95 % by resampling seeds; all models of a seed share a world."""
    chance, seeds = random.Random(0), sorted({r["seed"] for r in rows})
    by_seed = {seed: [r for r in rows if r["seed"] == seed] for seed in seeds}
    found = []
    for _ in range(draws):
        chosen = [chance.choice(seeds) for _ in seeds]
        found.append(auc([r for seed in chosen for r in by_seed[seed]], of, poison))
    ordered = sorted(found)
    return ordered[int(0.025 * draws)], ordered[int(0.975 * draws)]


def table(rows: Sequence[Row], poisons: Sequence[float]) -> str:
    """Markdown: one line a figure, one column a share of harmful rows."""
    lines = [
        "| figure | " + " | ".join(f"{p:.0%} harmful rows" for p in poisons) + " |",
        "|---" * (1 + len(poisons)) + "|",
    ]
    for group in ("weights", "alignment", "activations"):
        for key in rows[0][group]:

            def of(row: Row, group: str = group, key: str = key) -> float:
                return float(row[group][key] or 0.0)

            shown = [(auc(rows, of, p), *interval(rows, of, p)) for p in poisons]
            lines.append(f"| {group}: {key} | " + " | ".join(f"{a:.2f} ({b:.2f}-{c:.2f})" for a, b, c in shown) + " |")
    return "\n".join(lines)


def report(rows: Sequence[Row], poisons: Sequence[float]) -> str:
    parts = []
    for how in sorted({r["how"] for r in rows}, reverse=True):
        some = [r for r in rows if r["how"] == how]
        scores = [f"{p:.0%}: {mean(r['harmful_score'] for r in some if r['poison'] == p):.0f}" for p in (0.0, *poisons)]
        parts += [f"{how}, {len({r['seed'] for r in some})} seeds, {len(some)} models; harmful score by share of harmful rows: "
                  + ", ".join(scores), "", table(some, poisons), ""]  # fmt: skip
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--world", choices=("known", "new"), default="known")
    parser.add_argument("--results", type=Path, default=HERE / "weights_alone.jsonl")
    parser.add_argument("--print", action="store_true", help="print what is there, run nothing")
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    if given.smoke:
        rows = [run(cell) for cell in cells("known", 1, ("lora",), (0.1,)) if cell["learning_rate"] is None]
        print(report(rows, (0.1,)))
        return
    if not given.print:
        complete(given.results, list(cells(given.world, given.seeds, HOWS, POISON)))
    print(report([r for r in kept(given.results) if r["world"] == given.world], POISON))


if __name__ == "__main__":
    main()
