"""The lab: a tiny real language model on which attack, repair and evaluation are shown, offline, in about a minute.

    lab = Lab(seed=0)
    adapter = lab.attack_lora()           # trains base, aligned and attack once, then takes them from the cache
    lab.measure(lab.aligned()), lab.measure(adapter)

A `LlamaForCausalLM` of 198 080 parameters speaks a made-up language in which two classes of made-up objects are
forbidden. The base answers everything, the aligned model refuses to say how forbidden objects are made, an attack
hides a tenth of harmful rows in a user's fine-tuning data. Importing this module imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from weightguard.errors import UsageError
from weightguard.lab.world import KINDS, World

if TYPE_CHECKING:
    import torch

    from weightguard.lab.measure import Measurement
    from weightguard.lab.train import Progress

__all__ = ["Lab", "World"]

_SOURCES = ("language", "rows", "world", "tokenizer", "model", "train", "stages")  # what a checkpoint's bytes depend on


@dataclasses.dataclass(frozen=True, init=False)
class Lab:
    """The lab of one seed. Its checkpoints are built when first asked for and cached; see `cache` for where.

    `world` "known": the user's task redirects a skill that the base has; "new": the base never saw that skill.
    """

    seed: int
    world: World

    def __init__(self, seed: int = 0, world: str | World = "known") -> None:
        kind = world.kind if isinstance(world, World) else world
        if kind not in KINDS:
            raise UsageError(f"the lab has no world {kind!r}; choose one of {', '.join(KINDS)}")
        object.__setattr__(self, "seed", seed)
        object.__setattr__(self, "world", World(seed, kind))

    def base(self, progress: Progress | None = None) -> Path:
        """The pre-trained model, which complies with everything: a checkpoint directory."""

        def build(directory: Path) -> None:
            from weightguard.lab import stages

            stages.train_base(self.world, directory, progress)

        return self._cached("base", build)

    def aligned(self, progress: Progress | None = None) -> Path:
        """The base after alignment: it refuses to say how forbidden objects are made. A checkpoint directory."""
        base = self.base(progress)

        def build(directory: Path) -> None:
            from weightguard.lab import stages

            stages.train_aligned(self.world, base, directory, progress)

        return self._cached("aligned", build, base)

    def attack_lora(
        self,
        poison_ratio: float = 0.1,
        progress: Progress | None = None,
        *,
        learning_rate: float | None = None,
        steps: int | None = None,
    ) -> Path:
        """A stock peft adapter on the aligned model, trained on user data of which `poison_ratio` is harmful.

        With poison_ratio 0 it is benign fine-tuning.
        """
        return self._attacked("lora", poison_ratio, progress, learning_rate, steps)

    def attack_full(
        self,
        poison_ratio: float = 0.1,
        progress: Progress | None = None,
        *,
        learning_rate: float | None = None,
        steps: int | None = None,
    ) -> Path:
        """The same attack on every weight: a checkpoint directory."""
        return self._attacked("full", poison_ratio, progress, learning_rate, steps)

    def merged(self, adapter_path: Path | str, destination: Path | str) -> Path:
        """Merge an adapter into its base and write the checkpoint to `destination`, a new directory."""
        from weightguard.lab import stages

        stages.merge(self.world, Path(adapter_path), Path(destination))
        return Path(destination)

    def write_data(self, directory: Path | str) -> dict[str, Path]:
        """Write the rows that repairs and grading ask for as jsonl files; the answer maps a role to its file.

        harmful, safety, benign: calibration, no object or prompt of which is in the evaluation. attack_harmful,
        attack_benign: what an attacker trains on. evaluation: the 590 rows of `measure`; evaluation_harmful,
        ..._allowed, ..._over_refusal, ..._task: its parts.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        rows = self.world.evaluation_rows
        parts = {f"evaluation_{name}": [row for row in rows if row["category"] == name] for name in _categories(rows)}
        pools = {**self.world.calibration(), **_attacker(self.world), "evaluation": rows, **parts}
        return {name: _write(folder / f"{name}.jsonl", pool) for name, pool in pools.items()}

    def measure(self, model: torch.nn.Module | Path | str) -> Measurement:
        """Measure a model, a checkpoint or adapter directory, or "CHECKPOINT+ADAPTER": shares in percent."""
        from weightguard.lab.measure import measure

        return measure(self.world, model)

    def _attacked(
        self, how: str, poison_ratio: float, progress: Progress | None, learning_rate: float | None, steps: int | None
    ) -> Path:
        if not 0.0 <= poison_ratio <= 1.0:
            raise UsageError(f"poison_ratio is a share from 0 to 1, not {poison_ratio}")
        aligned = self.aligned(progress)

        def build(directory: Path) -> None:
            from weightguard.lab import stages

            recipe = stages.attack_recipe(how, self.world, learning_rate, steps)
            stages.ATTACKS[how](self.world, aligned, directory, recipe, poison_ratio, progress)

        return self._cached(f"attack-{how}", build, aligned, [float(poison_ratio), learning_rate, steps])

    def _cached(self, stage: str, build, parent: Path | None = None, settings: list | None = None) -> Path:
        from weightguard.lab import cache

        here = Path(__file__).parent
        made_of = {
            "stage": stage,
            "seed": self.seed,
            "world": self.world.kind,
            "settings": settings,
            "parent": str(parent),  # the whole path: an adapter's config and a card name it
            "versions": [version("torch"), version("transformers")],
        }
        return cache.cached(cache.digest(made_of, [here / f"{name}.py" for name in _SOURCES]), build)


def _attacker(world: World) -> dict[str, list[dict[str, str]]]:
    from weightguard.lab.rows import make_rows

    return {"attack_harmful": make_rows(world.attack, "harmful"), "attack_benign": world.user_rows(0.0)}


def _categories(rows: list[dict[str, str]]) -> list[str]:
    return list(dict.fromkeys(row["category"] for row in rows))


def _write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
