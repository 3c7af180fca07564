"""Names under which no stock language model finds its weights, and those that only look odd."""

from __future__ import annotations

import pytest

from weightguard.checkpoint import foreign_names

LLAMA, GPT2 = ["model.layers.0.mlp.up_proj.weight", "lm_head.weight"], ["transformer.h.0.mlp.c_fc.weight"]
OTHER = "there is no lm_head"
ODD = {
    "data parallel": ("llama", [f"module.{n}" for n in LLAMA], "named module.model.layers..., as saved from a module"),
    "compiled": ("llama", [f"_orig_mod.{n}" for n in LLAMA], "whose names have no '_orig_mod.'"),
    "peft around it": ("gpt2", [f"base_model.model.{n}" for n in GPT2], "whose names have no 'base_model.model.'"),
    "another place": ("llama", ["backbone.layers.0.mlp.up_proj.weight"], "named backbone.layers..., as saved"),
    "twice": ("llama", [f"model.{n}" for n in LLAMA], "whose names have no 'model.'"),
    "old norms": ("gpt2", [*GPT2, "transformer.h.0.ln_1.gamma"], "'transformer.h.0.ln_1.gamma': gamma and beta"),
    "a classifier": ("llama", [LLAMA[0], "score.weight"], OTHER),
}
PLAIN = {
    "llama": ("llama", LLAMA),
    "without a head class": ("llama", ["layers.0.mlp.up_proj.weight"]),
    "deeper": ("opt", ["model.decoder.layers.0.fc1.weight"]),
    "deeper, without a head class": ("opt", ["decoder.layers.0.fc1.weight"]),
    "gpt2": ("gpt2", GPT2),
    "neox": ("gpt_neox", ["gpt_neox.layers.0.mlp.dense_h_to_4h.weight", "embed_out.weight"]),
    "layers that guess ahead beside": ("qwen3_next", [*LLAMA, "mtp.layers.0.mlp.up_proj.weight"]),
    "a score and a head": ("llama", [*LLAMA, "score.weight"]),
    "a tower beside": ("llava", ["vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"]),
    "unknown": ("mamba", ["module.layers.0.mlp.up_proj.weight"]),
    "nothing": ("llama", []),
}


@pytest.mark.parametrize("case", ODD)
def test_told(case: str) -> None:
    kind, names, words = ODD[case]
    said = foreign_names({"model_type": kind}, names)
    assert said is not None and words in said


@pytest.mark.parametrize("case", PLAIN)
def test_silent(case: str) -> None:
    kind, names = PLAIN[case]
    assert foreign_names({"model_type": kind}, names) is None
