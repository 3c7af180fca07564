"""The one training loop of the lab: AdamW, cosine, loss on the answer only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightguard.lab.model import one_thread
from weightguard.lab.rows import Row
from weightguard.lab.tokenizer import build_tokenizer, chat
from weightguard.lab.world import World

if TYPE_CHECKING:
    import torch

Progress = Callable[[str, int, int, float], None]  # stage, steps done, steps in all, loss

IGNORED = -100  # label of a token that bears no loss
REPORT_EVERY = 10  # steps


@dataclass(frozen=True)
class Recipe:
    """How one stage trains. `mix`: share of each pool of rows; `frozen`: ends of parameter names that stay."""

    stage: str
    learning_rate: float
    steps: int
    batch: int
    weight_decay: float = 0.1
    clip: float = 1.0
    mix: tuple[tuple[str, float], ...] = ()
    frozen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Examples:
    """Tokens of rows, right padded: ids and labels (rows, longest text), and each row's weight in a draw."""

    ids: torch.Tensor
    labels: torch.Tensor
    weight: torch.Tensor


def examples(world: World, pools: Mapping[str, list[Row]], mix: Mapping[str, float]) -> Examples:
    """Tokenise `pools`; a pool is drawn with its share in `mix`, a pool that `mix` does not name never."""
    import torch

    chosen = {name: rows for name, rows in pools.items() if mix.get(name, 0.0) > 0.0}
    rows = [row for pool in chosen.values() for row in pool]
    weight = [mix[name] / len(pool) for name, pool in chosen.items() for _ in pool]
    ids, labels = encode(world, rows)
    return Examples(ids, labels, torch.tensor(weight, dtype=torch.float64))


def encode(world: World, rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and labels (rows, longest text) of `rows`; only the answer and the </s> after it have a label."""
    import torch

    tokenizer = build_tokenizer(world)
    texts = tokenizer([chat(row["prompt"], row["response"]) for row in rows], padding=True, return_tensors="pt")
    asked = tokenizer([chat(row["prompt"]) for row in rows])["input_ids"]
    start = torch.tensor([len(ids) for ids in asked])[:, None]
    place = torch.arange(texts["input_ids"].shape[1])[None, :]
    bears_loss = (place >= start) & texts["attention_mask"].bool()
    return texts["input_ids"], texts["input_ids"].masked_fill(~bears_loss, IGNORED)


def fit(model: torch.nn.Module, data: Examples, recipe: Recipe, seed: int, progress: Progress | None = None) -> None:
    """Train `model` in place. The same seed, data and torch give the same weights."""
    import torch

    _freeze(model, recipe.frozen)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True)
    draw = torch.Generator().manual_seed(seed)
    model.train()
    with one_thread():
        for step in range(recipe.steps):
            optimizer.param_groups[0]["lr"] = learning_rate(recipe, step)
            chosen = torch.multinomial(data.weight, recipe.batch, replacement=True, generator=draw)
            loss = _step(model, optimizer, parameters, data, chosen, recipe.clip)
            _report(progress, recipe, step + 1, loss)
    model.eval()


def learning_rate(recipe: Recipe, step: int) -> float:
    """A linear start over a twentieth of the steps, then half a cosine down to zero."""
    warm = max(1, recipe.steps // 20)
    if step < warm:
        return recipe.learning_rate * (step + 1) / warm
    return recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * (step - warm) / (recipe.steps - warm)))


def _step(model, optimizer, parameters: list, data: Examples, chosen: torch.Tensor, clip: float) -> torch.Tensor:
    import torch

    ids, labels = data.ids[chosen], data.labels[chosen]
    longest = int((labels != IGNORED).nonzero()[:, 1].max()) + 1  # padding stands right, so it needs no mask
    loss = _loss(model, ids[:, :longest], labels[:, :longest])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()
    return loss.detach()


def _loss(model, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the labelled tokens; logits of the others are never made, which saves a tenth."""
    import torch

    llama = model.get_base_model() if hasattr(model, "get_base_model") else model  # peft puts its layers inside
    hidden = llama.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    answer = labels[:, 1:] != IGNORED
    return torch.nn.functional.cross_entropy(llama.lm_head(hidden[answer]), labels[:, 1:][answer])


def _freeze(model: torch.nn.Module, ends: tuple[str, ...]) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith(ends):
            parameter.requires_grad_(False)


def _report(progress: Progress | None, recipe: Recipe, done: int, loss: torch.Tensor) -> None:
    if progress is not None and (done % REPORT_EVERY == 0 or done == recipe.steps):
        progress(recipe.stage, done, recipe.steps, float(loss))
