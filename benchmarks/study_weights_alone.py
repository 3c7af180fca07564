"""Can the weights alone tell a harmful fine-tuning from a benign one? Measured on the lab, for want of labelled models.

    python benchmarks/study_weights_alone.py --seeds 5     # about a minute when the lab is cached, else a minute a seed
    python benchmarks/study_weights_alone.py --smoke       # one seed, two models

Per seed: LoRA and full fine-tuning, benign at two learning rates, and with 2, 5 and 10 % of harmful rows. Every statistic
of `inspect --base ALIGNED --aligned ALIGNED --unaligned BASE` is given its AUC, harmful against benign, and an interval
from resampling seeds. "cosine" is Safe LoRA's (arXiv:2405.16833), "top share" LoX's directions (arXiv:2506.15606).
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable, Sequence
from statistics import mean, median

from weightguard import api
from weightguard.comparison.safety import total
from weightguard.lab import Lab

DOUBLED = {"lora": 2.4e-3, "full": 5e-4}
POISON = (0.02, 0.05, 0.1)
Row = dict[str, float | int | str]


def figures(lab: Lab, model: str) -> dict[str, float]:
    """The statistics of one fine-tuning of the aligned model, over all decoder linears."""
    aligned, base = str(lab.aligned()), str(lab.base())
    found = api.compare(model, aligned, aligned=aligned, unaligned=base, spectra=True)
    linears = [c for c in found.changes if c.name in found.relevance]
    whole = {k.replace("_", " "): float(v or 0) for k, v in total(found.relevance.values()).as_dict().items()}
    norms = [math.hypot(*(getattr(c, key) for c in linears)) for key in ("update_norm", "base_norm")]
    return {
        "size of the update": norms[0] / norms[1],
        "kurtosis": median(c.kurtosis or 0 for c in linears),
        "effective rank": mean(s.effective_rank or 0 for s in found.spectra.values()),
        "leading value over noise": median(s.over_noise for s in found.spectra.values()),
        **whole,
    }


def rows_of(seed: int, hows: Sequence[str], poisons: Sequence[float]) -> list[Row]:
    """One row a model: what it was trained on, and its figures."""
    lab, rows = Lab(seed), []
    for how in hows:
        attack: Callable = getattr(lab, f"attack_{how}")
        models = [(0.0, attack(0.0)), (0.0, attack(0.0, learning_rate=DOUBLED[how]))]
        models += [(poison, attack(poison)) for poison in poisons]
        rows += [{"seed": seed, "how": how, "poison": poison, **figures(lab, str(model))} for poison, model in models]
    return rows


def auc(rows: Sequence[Row], key: str, poison: float) -> float:
    """Probability that a model trained on this share of harmful rows is above a benign one."""
    harmful = [float(r[key]) for r in rows if r["poison"] == poison]
    benign = [float(r[key]) for r in rows if r["poison"] == 0]
    wins = sum((h > b) + 0.5 * (h == b) for h in harmful for b in benign)
    return wins / (len(harmful) * len(benign))


def interval(rows: Sequence[Row], key: str, poison: float, draws: int = 1000) -> tuple[float, float]:
    """95 % by resampling seeds; all models of a seed share a world."""
    chance, seeds = random.Random(0), sorted({r["seed"] for r in rows}, key=str)
    found = []
    for _ in range(draws):
        chosen = [chance.choice(seeds) for _ in seeds]
        found.append(auc([r for seed in chosen for r in rows if r["seed"] == seed], key, poison))
    ordered = sorted(found)
    return ordered[int(0.025 * draws)], ordered[int(0.975 * draws)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    hows, poisons = (("lora",), (0.1,)) if given.smoke else (("lora", "full"), POISON)
    rows = [row for seed in range(1 if given.smoke else given.seeds) for row in rows_of(seed, hows, poisons)]
    print(f"{len(rows)} models, {sum(r['poison'] == 0 for r in rows)} of them benign")
    for key in (k for k in rows[0] if k not in ("seed", "how", "poison")):
        cells = [f"{auc(rows, key, p):.2f} ({'-'.join(f'{v:.2f}' for v in interval(rows, key, p))})" for p in poisons]
        print(f"{key:26}" + "  ".join(f"{p:.0%}: {cell}" for p, cell in zip(poisons, cells, strict=True)))


if __name__ == "__main__":
    main()
