"""What config.json may say: everything that ordinary repositories write, and every name that transformers knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

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


def test_an_unknown_architecture_may_say_anything() -> None:
    check_config({"model_type": "openelm", "num_key_value_heads": [3, 3, 4], "hidden_size": 0})


def test_every_activation_of_transformers_is_known() -> None:
    from transformers.activations import ACT2FN

    known: Mapping[str, Any] = ACT2FN
    assert set(ACTIVATIONS) == set(known)
