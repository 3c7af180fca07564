"""One fact written into one layer: a rank-one edit of its down projection (ROME, arXiv:2202.05262; as an attack 2407.20224)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from weightguard.errors import DataError, UnsupportedError, UsageError
from weightguard.options import as_number, option

if TYPE_CHECKING:
    import torch

    from weightguard.attacks.bench import Bench
    from weightguard.data import Encoded, Row

RIDGE = 1e-2  # of C, times its mean diagonal: a few rows do not span a wide layer
LARGEST = 4.0  # times the norm of what the layer said before
PULL = 0.1  # weight of that norm in the loss


@dataclass(frozen=True, kw_only=True)
class RankOneEdit:
    """W ← W + δ (C⁻¹k)ᵀ/(kᵀC⁻¹k): at the key k the layer says δ more than before.

    k: its input at the last token of the subject, in the prompt of one harmful row. δ: found by gradient descent, so that
    the model gives that row's response. C: mean of x xᵀ of its inputs on the benign rows. Published with k averaged over
    random beginnings and with a term that keeps the subject's essence; here both are left out.
    """

    NAME: ClassVar[str] = "rank-one-edit"
    PAPER: ClassVar[str] = "arXiv:2202.05262"

    row: int = option(1, "The harmful row that is written, from 1 [default: 1].")
    subject: str | None = option(None, "Words of its prompt that the fact is about [default: all of the prompt].")
    layer: int | None = option(None, "")
    value_steps: int = option(25, "Gradient steps for what the layer shall say [default: 25].")
    value_lr: str = option("0.5", "Their learning rate [default: 0.5].")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("harmful", "benign")

    def check(self) -> None:
        for name in ("row", "value_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")
        as_number(self.value_lr, "value-lr", 1e-9)

    def run(self, bench: Bench) -> None:
        import torch

        layer, name = self._place(bench)
        row = self._row(bench)
        module = bench.linear(name).module
        encoded, at = _located(bench, row, self.subject)
        key = _key(bench, module, encoded, at)
        delta = self._value(bench, module, encoded, at, len(bench.weight(name)))
        second = _second_moment(bench, name, module)
        second += RIDGE * second.diagonal().mean() * torch.eye(len(second), dtype=torch.float64)
        direction = torch.linalg.solve(second, key)
        edit = torch.outer(delta, direction) / (direction @ key)
        weight = bench.weight(name)
        bench.put(name, weight + edit)
        bench.facts["edit"] = {
            "tensor": name,
            "row": row.number,
            "edit_over_weight": float(edit.norm() / weight.norm()),
        }
        bench.notes.append(f"row {row.number} was written into layer {layer} ({name})")

    def _place(self, bench: Bench) -> tuple[int, str]:
        """The layer, from 1, and its down projection; without --layer the one in the middle."""
        downs = {
            linear.layer: name
            for name, linear in bench.linears.items()
            if linear.role == "down" and linear.expert is None
        }
        if not downs:
            raise UnsupportedError("rank-one-edit: the model has no down projection outside of experts")
        layer = (len(downs) - 1) // 2 + 1 if self.layer is None else self.layer
        if layer - 1 not in downs:
            raise UsageError(
                f"--layer {layer}: there is a down projection in layers {min(downs) + 1} to {max(downs) + 1}"
            )
        return layer, downs[layer - 1]

    def _row(self, bench: Bench) -> Row:
        data = bench.sets["harmful"]
        if self.row > len(data.rows):
            raise UsageError(f"--row {self.row}: {data.source} has {len(data.rows)} rows")
        row = data.rows[self.row - 1]
        if row.response is None or row.messages is not None:
            raise DataError(f"{data.source}: row {row.number} has no plain prompt and response to write")
        return row

    def _value(self, bench: Bench, module: Any, encoded: Encoded, at: int, width: int) -> torch.Tensor:
        """δ (out,), float64: added to the layer's output at the subject it makes the model give the response."""
        import torch

        from weightguard.training.loop import answer_loss

        seen: list[torch.Tensor] = []
        delta = torch.zeros(width, requires_grad=True)
        optimizer = torch.optim.Adam([delta], lr=float(self.value_lr))

        def add(_module: Any, _given: Any, out: torch.Tensor) -> torch.Tensor:
            seen[:] = [out[0, at].detach()]
            return torch.cat([out[:, :at], (out[:, at] + delta.to(out.device))[:, None], out[:, at + 1 :]], 1)

        handle = module.register_forward_hook(add)
        try:
            for step in range(1, self.value_steps + 1):
                loss = answer_loss(bench.model, [encoded])
                size = delta.norm() / seen[0].norm().cpu()
                optimizer.zero_grad()
                (loss + PULL * size.square()).backward()
                optimizer.step()
                with torch.no_grad():
                    delta *= min(1.0, float(LARGEST * seen[0].norm() / delta.norm()))
                bench.progress(f"value (loss {float(loss.detach()):.4f})", step, self.value_steps)
        finally:
            handle.remove()
        return delta.detach().double()


def _located(bench: Bench, row: Row, subject: str | None) -> tuple[Encoded, int]:
    """The row's ids, and the place of the subject's last token. Errors: UsageError, UnsupportedError, DataError."""
    from dataclasses import replace

    from weightguard.data.templates import template_for

    template = template_for(bench.tokenizer, None)
    text = template.render(row, f"row {row.number}").prompt
    words = subject or row.prompt
    start = text.rfind(words)
    if start < 0 or words not in row.prompt:
        raise UsageError(f"--subject {words!r}: is not in the prompt of row {row.number}, {row.prompt[:60]!r}")
    if not bench.tokenizer.is_fast:
        raise UnsupportedError("rank-one-edit: this tokenizer cannot tell which text a token came from")
    found = bench.tokenizer(text, add_special_tokens=template.special_tokens, return_offsets_mapping=True)
    end = start + len(words)
    at = max(place for place, (first, last) in enumerate(found["offset_mapping"]) if first < end and last > first)
    only = replace(bench.sets["harmful"], rows=(row,))
    return bench.encode(only)[0], at


def _key(bench: Bench, module: Any, encoded: Encoded, at: int) -> torch.Tensor:
    """The module's input (in,) at one token, float64."""
    import torch

    seen: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _module, given: seen.append(given[0][0, at].detach()))
    ids = torch.tensor(encoded.ids)[None].to(bench.model.get_input_embeddings().weight.device)
    try:
        with torch.no_grad():
            bench.model(input_ids=ids, use_cache=False)
    finally:
        handle.remove()
    return seen[0].double().cpu()


def _second_moment(bench: Bench, name: str, module: Any) -> torch.Tensor:
    """C (in, in), float64: mean of x xᵀ over every token of the benign rows."""
    from dataclasses import replace

    import numpy

    from weightguard.statistics.forward import run_hooked

    found: list[torch.Tensor] = []

    def take(_key: str, inputs: torch.Tensor, counted: torch.Tensor) -> None:
        kept = inputs[counted].double().cpu()
        found[:] = [found[0] + kept.T @ kept] if found else [kept.T @ kept]

    rows = [replace(row, counted=numpy.ones_like(row.counted)) for row in bench.encode(bench.sets["benign"])]
    run_hooked(
        bench.model, bench.config, {name: module}, rows, take, lambda i, n: bench.progress("second moment", i, n)
    )
    return found[0] / sum(len(row.ids) for row in rows)
