"""What an attack works with: the model in memory, rows by role, and ways to train it and to write into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from weightguard.checkpoint import Linear
from weightguard.data import Dataset, Encoded, Row, encode
from weightguard.errors import UnsupportedError
from weightguard.statistics.parameters import Target, known_targets
from weightguard.training.loop import Loss, answer_loss
from weightguard.training.lora import Lora, adapted, targeted
from weightguard.training.recipe import Recipe

Progress = Callable[[str, int, int], None]
Train = Callable[[Any, Sequence[Any], Recipe, Loss], None]


@dataclass(eq=False)
class Bench:
    """model: causal, in float32, nothing of it requires a gradient at first; what does in the end is written.

    linears, shapes: the decoder's by on-disk name, shapes (out, in). sets: rows by role. base_name: what the config of
    an adapter names. train: the loop of this run, which saves its state and goes on with it. notes: what the user
    must know; facts: what the manifest records.
    """

    model: Any
    tokenizer: Any
    config: dict
    linears: Mapping[str, Linear]
    shapes: Mapping[str, tuple[int, ...]]
    sets: Mapping[str, Dataset]
    base_name: str
    max_length: int
    train: Train
    progress: Progress
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def encode(self, data: Dataset) -> tuple[Encoded, ...]:
        """Token ids of the rows; only their responses are learnt."""
        found = encode(data, self.tokenizer, tokens="response", max_length=self.max_length)
        if found.truncated:
            self.notes.append(f"{found.truncated} rows of {found.source} are cut at {self.max_length} tokens")
        return found.rows

    def adapt(self, rank: int, seed: int) -> None:
        """Train a LoRA adapter of this rank over every linear of the decoder, or with rank 0 every weight."""
        if not rank:
            self.model.requires_grad_(True)
            return
        lora = Lora(r=rank)
        names = targeted(lora, [n for n, linear in self.linears.items() if linear.expert is None], self.shapes)
        self.model = adapted(self.model, lora, names, self.base_name, seed)

    def fit(self, rows: Sequence[Any], recipe: Recipe, loss: Loss = answer_loss) -> None:
        """Train what `adapt` opened."""
        self.train(self.model, rows, recipe, loss)

    def answers(self, rows: Sequence[Row], source: str, most: int = 64) -> list[str]:
        """The model's own greedy answers, in the order of the rows, as long as its context leaves room for."""
        from weightguard.validate.generation import check_room, context_of, greedy_answers, prompt_ids

        prompts = prompt_ids(rows, self.tokenizer, source)
        check_room(prompts, rows, self.model, 1, source)
        most = min(most, context_of(self.model) - max(map(len, prompts)))
        found = [""] * len(rows)
        for done, (at, text) in enumerate(greedy_answers(self.model, self.tokenizer, prompts, max_new_tokens=most), 1):
            found[at] = text
            self.progress("own answers", done, len(rows))
        return found

    def linear(self, name: str) -> Target:
        """The parameter of a linear by on-disk name. Error: UnsupportedError where the model holds it in other pieces."""
        found = known_targets(self.model, [name]).get(name)
        if found is None or found.parameter.ndim != 2:
            raise UnsupportedError(
                f"tensor {name!r}: the running model holds it in other pieces, so it cannot be edited"
            )
        return found

    def weight(self, name: str) -> torch.Tensor:
        """The weight (out, in) of a linear, float64 on the CPU."""
        target = self.linear(name)
        held = target.parameter.detach().double().cpu()
        return held.T if target.transposed else held

    def put(self, name: str, weight: torch.Tensor) -> None:
        """A new weight (out, in) for a linear, which is written in the end."""
        target = self.linear(name)
        with torch.no_grad():
            target.parameter.copy_(target.oriented(weight))
        target.parameter.requires_grad_(True)
