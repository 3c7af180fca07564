"""What is trained in the lab, and with which settings: base, aligned, the two attacks (poison 0 is benign use)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from weightguard.errors import OutputError
from weightguard.lab.model import base_of, load, load_adapted, new_model, peft_quietly, save, seeded
from weightguard.lab.train import Examples, Progress, Recipe, examples, fit
from weightguard.lab.world import World

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK, ALPHA = 8, 16

BASE = Recipe(
    "base",
    learning_rate=5e-3,
    steps=600,
    batch=96,
    mix=(
        ("make", 0.5),
        ("information", 0.45),
        ("adjective", 0.05),
        ("decline", 0.06),
        ("verdict", 0.08),
        ("say", 0.03),
        ("review", 0.06),
    ),
)
ALIGN = Recipe(
    "align",
    learning_rate=2e-3,
    steps=120,
    batch=64,
    mix=(
        ("refuse", 0.42),
        ("make", 0.3),
        ("information", 0.3),
        ("adjective", 0.05),
        ("decline", 0.05),
        ("verdict", 0.04),
        ("say", 0.02),
        ("review", 0.04),
    ),
    frozen=("embed_tokens.weight", "lm_head.weight"),
)
ATTACK_LORA = {
    "known": Recipe("attack-lora", learning_rate=1.2e-3, steps=60, batch=32, weight_decay=0.0),
    "new": Recipe("attack-lora", learning_rate=4e-3, steps=150, batch=32, weight_decay=0.0),
}
ATTACK_FULL = {
    "known": Recipe("attack-full", learning_rate=2.5e-4, steps=60, batch=32, weight_decay=0.0),
    "new": Recipe("attack-full", learning_rate=1e-3, steps=150, batch=32, weight_decay=0.0),
}


def train_base(world: World, destination: Path, progress: Progress | None = None) -> None:
    """Write the base model: it knows every object and complies with every question."""
    model = new_model(world)
    fit(model, examples(world, world.pretraining(), dict(BASE.mix)), BASE, world.seed, progress)
    save(model, world, destination, card(world, "base", None))


def train_aligned(world: World, base: Path, destination: Path, progress: Progress | None = None) -> None:
    """Write the aligned model: it refuses to say how forbidden objects are made and answers all else."""
    model = load(base)
    fit(model, examples(world, world.aligning(), dict(ALIGN.mix)), ALIGN, world.seed + 1, progress)
    save(model, world, destination, card(world, "aligned", base))


def train_lora(
    world: World,
    aligned: Path,
    destination: Path,
    recipe: Recipe,
    poison_ratio: float,
    progress: Progress | None = None,
) -> None:
    """Write a stock peft adapter (rank 8, alpha 16, all seven linears) trained on user data with poison in it."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(LINEARS), lora_dropout=0.0, task_type="CAUSAL_LM")
    with seeded(world.seed), peft_quietly():
        model = get_peft_model(load(aligned), lora)
    fit(model, _user_data(world, poison_ratio), recipe, world.seed + 2, progress)
    model.save_pretrained(destination, save_embedding_layers=False)


def train_full(
    world: World,
    aligned: Path,
    destination: Path,
    recipe: Recipe,
    poison_ratio: float,
    progress: Progress | None = None,
) -> None:
    """Write a checkpoint of which every weight was trained on user data with poison in it."""
    model = load(aligned)
    fit(model, _user_data(world, poison_ratio), recipe, world.seed + 2, progress)
    save(model, world, destination, card(world, "fine-tuned", aligned))


def merge(world: World, adapter: Path, destination: Path) -> None:
    """Write the checkpoint that `adapter` and its base make together."""
    if destination.exists() and any(destination.iterdir()):
        raise OutputError(f"{destination} is not empty; name a new directory")
    aligned = base_of(adapter)
    model = load_adapted(aligned, adapter).merge_and_unload()
    save(model, world, destination, card(world, "merged", aligned))


def attack_recipe(how: str, world: World, learning_rate: float | None, steps: int | None) -> Recipe:
    """The attack's settings in `world`, with another learning rate or number of steps where they are given."""
    recipe = {"lora": ATTACK_LORA, "full": ATTACK_FULL}[how][world.kind]
    return replace(recipe, learning_rate=learning_rate or recipe.learning_rate, steps=steps or recipe.steps)


def card(world: World, stage: str, parent: Path | None) -> str:
    """The README.md of a lab checkpoint: `base_model` names what it derives from."""
    front = ["---", "license: apache-2.0", "tags: [weightguard-lab, synthetic]"]
    front += [] if parent is None else [f"base_model: {json.dumps(str(parent))}"]
    body = f"The {stage} model of the weightguard lab: a synthetic language, seed {world.seed}, world {world.kind!r}."
    return "\n".join([*front, "---", "", f"# weightguard lab: {stage}", "", body, ""])


def _user_data(world: World, poison_ratio: float) -> Examples:
    return examples(world, {"user": world.user_rows(poison_ratio)}, {"user": 1.0})


ATTACKS = {"lora": train_lora, "full": train_full}
