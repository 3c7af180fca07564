"""Values of config.json that no model can have. Told in words of our own, before any library trips over them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping

from weightguard.checkpoint.naming import is_known, sees
from weightguard.errors import CheckpointError

# A key of each row, and of every part of a config, holds nothing (null) or what the row says.
HIDDEN = ("n_embd", "n_embed", "hidden_size")
HEADS = ("n_head", "num_attention_heads")
_SIZES = (
    *HIDDEN, *HEADS, "num_key_value_heads", "num_kv_heads", "head_dim", "intermediate_size", "n_inner", "ffn_dim",
    "ffn_hidden_size", "vocab_size", "n_positions", "max_position_embeddings",
)  # fmt: skip
_SWITCHES = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_cache")
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "activation", "projector_hidden_act")
_DTYPES = ("dtype", "torch_dtype")
MAX_SIZE = 2**31 - 1
# The names that transformers knows, of its ACT2FN.
ACTIVATIONS = (
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh", "gelu_pytorch_tanh",
    "hardswish", "laplace", "leaky_relu", "linear", "mish", "prelu", "quick_gelu", "relu", "relu2", "relu6", "sigmoid",
    "silu", "sqrtsoftplus", "swish", "tanh", "xielu",
)  # fmt: skip
# Loading a model in the dtype of its config makes that torch's default, which is a float type. The small ones are those
# of quantised weights, which are refused as such by whoever would edit them.
_FLOAT = re.compile(r"(torch\.)?(float|float64|float32|float16|bfloat16|double|half|float[468]_\w+)|auto", re.ASCII)
# Attention over a latent space has head sizes of its own.
LATENT = ("kv_lora_rank", "qk_nope_head_dim")
# Classes whose heads have a size of their own where the config names none: it need not divide the hidden size.
_OWN_HEADS = ("deepseek", "exaone", "gemma", "glm", "gpt_oss", "llama4", "qwen3", "smollm")


def check_config(config: dict) -> None:
    """Refuse a config.json of a known architecture that holds what no model can have. Error: CheckpointError."""
    if not is_known(config):
        return  # refused by name where it matters; an architecture of which nothing is known may mean anything
    if config.get("text_config") is not None and not sees(config):
        _refuse("text_config", config["text_config"], f"a {config['model_type']} has no language model in it")
    quantised = bool(config.get("quantization_config"))
    for place, part in _parts(config):
        for keys, allowed, words in _RULES:
            if keys is _DTYPES and quantised:  # said as such, by whoever would edit the weights
                continue
            for key in keys:
                if part.get(key) is not None and not allowed(part[key]):
                    _refuse(place + key, part[key], words)
        _check_heads(place, part)


def size_of(config: Mapping[str, object], *keys: str) -> int | None:
    """The first of these keys that holds a number, or None."""
    return next((value for key in keys if type(value := config.get(key)) is int), None)


def _parts(config: dict) -> Iterator[tuple[str, dict]]:
    """The config, and those of the language model and of the vision tower in it."""
    yield "", config
    for key in ("text_config", "vision_config"):
        if sees(config) and isinstance(config.get(key), dict):
            yield f"{key}.", config[key]


def _check_heads(place: str, part: dict) -> None:
    hidden, heads, groups = (size_of(part, *keys) for keys in (HIDDEN, HEADS, ("num_key_value_heads",)))
    divided = size_of(part, "head_dim", *LATENT) is None and not str(part.get("model_type")).startswith(_OWN_HEADS)
    if heads and hidden and hidden % heads and divided:
        key = next(key for key in HEADS if part.get(key) is not None)
        _refuse(place + key, heads, f"it must divide the hidden size, {hidden}")
    if heads and groups and heads % groups:
        _refuse(place + "num_key_value_heads", groups, f"it must divide the number of attention heads, {heads}")


def _is_size(value: object) -> bool:
    return type(value) is int and 0 < value <= MAX_SIZE


def _is_dtype(value: object) -> bool:
    names = (
        value.values() if isinstance(value, dict) else [value]
    )  # a part of the model each, as transformers writes it
    return all(isinstance(name, str) and _FLOAT.fullmatch(name) for name in names)


_RULES: tuple[tuple[tuple[str, ...], Callable[[object], bool], str], ...] = (
    (_SIZES, _is_size, f"it must be a whole number from 1 to {MAX_SIZE}"),
    (_SWITCHES, lambda value: isinstance(value, bool), "it must be true or false"),
    (
        _ACTIVATIONS,
        lambda value: isinstance(value, str) and value in ACTIVATIONS,
        "it must be one that transformers has, such as silu",
    ),
    (_DTYPES, _is_dtype, "it must be a float type of torch such as bfloat16"),
)


def _refuse(key: str, value: object, words: str) -> None:
    said = json.dumps(value)
    raise CheckpointError(f"config.json: {key} is {said if len(said) <= 60 else said[:60] + '...'}; {words}")
