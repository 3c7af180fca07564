"""What --lora says, and that peft gets it."""

from __future__ import annotations

from typing import Any

import pytest

from weightguard.errors import UsageError
from weightguard.training.lora import Lora, adapted, parse_lora, targeted

NAMES = [f"model.layers.{i}.self_attn.{p}_proj.weight" for i in range(2) for p in "qv"]


@pytest.mark.parametrize(
    ("text", "lora"),
    [("r=16", Lora(16)), ("r=4, alpha=8.5", Lora(4, 8.5)), ("targets=q_proj+v_proj", Lora(targets=("q_proj", "v_proj"))),
     ("targets=all,dropout=0.1,rslora=True", Lora(dropout=0.1, rslora=True))],
)  # fmt: skip
def test_parsed(text: str, lora: Lora) -> None:
    assert parse_lora(text) == lora


@pytest.mark.parametrize(
    "text",
    ["", "16", "r", "r=", "r=0", "r=-3", "r=1.5", "r=99999999999999999999", "rank=4", "r=4,r=5", "alpha=nan", "alpha=inf",
     "alpha=0", "targets=", "targets=q_proj+", "targets=a b", "targets=.*", "dropout=1", "dropout=x", "rslora=2", "r=4;alpha=2"],
)  # fmt: skip
def test_nonsense_is_one_line(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--lora [^\n]*$"):
        parse_lora(text)


def test_targets_and_ranks_are_checked() -> None:
    shapes = dict.fromkeys(NAMES, (8, 16))
    assert targeted(Lora(4), NAMES, shapes) == NAMES
    assert targeted(Lora(4, targets=("v_proj",)), NAMES, shapes) == NAMES[1::2]
    with pytest.raises(UsageError, match=r"targets=w_proj: the decoder's linears are q_proj, v_proj"):
        targeted(Lora(4, targets=("w_proj",)), NAMES, shapes)
    with pytest.raises(UsageError, match=r"r=9: beyond the dimensions of tensor .*q_proj.*\[8, 16\]"):
        targeted(Lora(9), NAMES, shapes)


@pytest.mark.parametrize("rslora", [False, True])
def test_twice_the_rank_at_the_same_scale(rslora: bool) -> None:
    lora = Lora(8, 12, rslora=rslora)
    assert lora.doubled().r == 16 and lora.doubled().scale == pytest.approx(lora.scale)


def test_a_stock_peft_model() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    def made() -> Any:
        model = LlamaForCausalLM(LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                                             num_attention_heads=4))  # fmt: skip
        return adapted(model, Lora(4, 12, dropout=0.1), NAMES, "org/base", 3)

    model, again = made(), made()
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.base_model_name_or_path) == (
        4,
        12,
        0.1,
        "org/base",
    )
    factors = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(factors) == 8 and all("q_proj" in n or "v_proj" in n for n in factors)
    assert all((p == dict(again.named_parameters())[n]).all() for n, p in factors.items())
