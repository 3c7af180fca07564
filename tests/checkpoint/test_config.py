"""What config.json may say: everything that ordinary repositories write, and every name that transformers knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from weightguard.checkpoint import Linear, TensorInfo, decoder_linears, misfits
from weightguard.checkpoint.config import ACTIVATIONS, check_config
from weightguard.checkpoint.naming import FAMILIES, WRAPPERS
from weightguard.errors import CheckpointError

ORDINARY: dict[str, dict[str, Any]] = {
    "nothing but its type": {},
    "null for what the class decides": {
        "head_dim": None, "n_inner": None, "num_key_value_heads": None, "tie_word_embeddings": None, "dtype": None,
    },
    "heads of a size of their own": {"hidden_size": 1000, "num_attention_heads": 3, "head_dim": 128},
    "heads over a latent space": {"hidden_size": 1000, "num_attention_heads": 3, "qk_nope_head_dim": 128},
    "a dtype with its module": {"torch_dtype": "torch.bfloat16"},
    "a dtype left open": {"dtype": "auto"},
    "a dtype of each part": {"dtype": {"": "bfloat16", "text_config": "float32"}},
    "quantised to integers": {"torch_dtype": "int8", "quantization_config": {"quant_method": "gptq"}},
    "quantised to small floats": {"torch_dtype": "float8_e4m3fn"},
    "keys of no meaning here": {"activation_dropout": 0.0, "n_ctx": "long", "heads": 0},
}  # fmt: skip


@pytest.mark.parametrize("case", ORDINARY)
def test_ordinary_values_are_taken(case: str) -> None:
    check_config({"model_type": "llama", **ORDINARY[case]})


def test_what_transformers_writes_is_taken() -> None:
    from transformers import CONFIG_MAPPING

    for kind in (*FAMILIES, *WRAPPERS):
        check_config(CONFIG_MAPPING[kind]().to_dict())


def test_the_language_model_of_one_that_sees_is_looked_at() -> None:
    with pytest.raises(CheckpointError, match=r"^config\.json: text_config\.hidden_size is 0; it must be"):
        check_config({"model_type": "llava", "text_config": {"hidden_size": 0}})


def test_heads_that_their_class_sizes_need_not_divide() -> None:
    check_config({"model_type": "qwen3", "hidden_size": 50, "num_attention_heads": 4})
    with pytest.raises(CheckpointError, match="must divide the hidden size, 50"):
        check_config({"model_type": "llama", "hidden_size": 50, "num_attention_heads": 4})


def test_a_part_of_a_config_may_leave_out_what_its_class_knows() -> None:
    """LLaVA 1.5 names no number of layers of its language model: the tensors tell."""
    block = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
    ]
    names = [f"model.layers.{i}.{path}.weight" for i in range(2) for path in (*block, "mlp.down_proj")]
    tensors = {
        f"language_model.{n}": TensorInfo(f"language_model.{n}", "f", "BF16", (8, 8), 128 * i, 128 * i + 128)
        for i, n in enumerate(names)
    }
    config = {"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 9}}
    assert len(decoder_linears(config, tensors)) == 14
    last = tensors.popitem()[0].split("language_model.")[1].removeprefix("model.")
    with pytest.raises(CheckpointError, match=f"^missing tensor: no {last}"):
        decoder_linears(config, tensors)
    with pytest.raises(CheckpointError, match="num_hidden_layers is missing"):
        decoder_linears(
            {"model_type": "llama"}, {name.removeprefix("language_model."): i for name, i in tensors.items()}
        )


def test_packed_values_have_shapes_of_their_own() -> None:
    config = {"model_type": "llama", "hidden_size": 32}
    linears = {"q": Linear("q", 0, "q", False)}
    tensors = {"q": TensorInfo("q", "f", "U8", (512, 1), 0, 512)}
    assert misfits(config, linears, tensors)
    assert not misfits({**config, "quantization_config": {"quant_method": "bitsandbytes"}}, linears, tensors)


def test_an_unknown_architecture_may_say_anything() -> None:
    check_config({"model_type": "openelm", "num_key_value_heads": [3, 3, 4], "hidden_size": 0})


def test_every_activation_of_transformers_is_known() -> None:
    from transformers.activations import ACT2FN

    known: Mapping[str, Any] = ACT2FN
    assert set(ACTIVATIONS) == set(known)
