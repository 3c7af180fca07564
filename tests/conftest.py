"""Pico checkpoints, tokenizers, data and adapters, all written by the stock libraries, once a session."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # a core each: torch must not start threads for all of them
    os.environ.setdefault("OMP_NUM_THREADS", "1")

Build = Callable[..., Path]
LONG = ("test_readme.py", "test_validate.py", "test_contract.py")  # files that are begun first, each by a worker


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


_SIZES = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GPT2 = {
    "vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_HEADS = {**_SIZES, "head_dim": 8}
_ROUTED = {"num_experts_per_tok": 2, "moe_intermediate_size": 8}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_LATENT = {
    **_SIZES, **_ROUTED, "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 2, "first_k_dense_replace": 1,
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4, "n_group": 1,
    "topk_group": 1,
}  # fmt: skip
_LINEAR_ATTENTION = {
    "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
_NARROW = {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": _SIZES,
    "mistral": {**_SIZES, "sliding_window": 8},
    "qwen2": _SIZES,
    "qwen3": {**_SIZES, "head_dim": 8},
    "gemma": {**_SIZES, "head_dim": 8, "num_key_value_heads": 1},
    "gemma2": {**_SIZES, **_NARROW},
    "gemma3_text": {**_SIZES, **_NARROW},
    "phi3": _SIZES,
    "gpt2": _GPT2,
    "cohere": _SIZES,
    "cohere2": {**_SIZES, "sliding_window": 8},
    "exaone4": {**_SIZES, "sliding_window": 8},
    "granite": _SIZES,
    "olmo": _SIZES,
    "olmo2": _SIZES,
    "smollm3": _SIZES,
    "stablelm": _SIZES,
    "glm": {**_SIZES, "head_dim": 4},
    "glm4": {**_SIZES, "head_dim": 4},
    "gpt_neox": _SIZES,
    "opt": {**_SIZES, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "falcon": {**_SIZES, "new_decoder_architecture": True, "num_kv_heads": 2},
    "bloom": {**_SIZES, "n_layer": 2, "n_head": 4},
    "phi": _SIZES,
    "starcoder2": _SIZES,
    "mixtral": {**_SIZES, **_LOCAL},
    "qwen2_moe": {**_SIZES, **_ROUTED, "num_experts": 4, "shared_expert_intermediate_size": 12, "mlp_only_layers": [0]},
    "qwen3_moe": {**_HEADS, **_ROUTED, "num_experts": 4},
    "qwen3_next": {
        **_HEADS, **_ROUTED, **_LINEAR_ATTENTION, "num_experts": 4, "shared_expert_intermediate_size": 12,
    },
    "olmoe": {**_SIZES, "num_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v2": {**_LATENT, "q_lora_rank": None},
    "deepseek_v3": _LATENT,
    "granitemoe": {**_SIZES, **_LOCAL},
    "gpt_oss": {**_HEADS, **_LOCAL, "sliding_window": 8},
    "ministral3": _HEADS,
    "llama4_text": {**_HEADS, **_LOCAL, "num_experts_per_tok": 1, "intermediate_size_mlp": 32, "interleave_moe_layer_step": 2},
}  # fmt: skip
_SEES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
_SECTIONS = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 10000.0}}
WRAPPED: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {**SETTINGS["gemma3_text"], "model_type": "gemma3_text"},
        "vision_config": {**_SEES, "model_type": "siglip_vision_model"}, "mm_tokens_per_image": 4,
    },
    "llama4": {
        "text_config": SETTINGS["llama4_text"],
        "vision_config": {**_SEES, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
    },
    "llava": {
        "text_config": {**_SIZES, "model_type": "llama"}, "vision_config": {**_SEES, "model_type": "clip_vision_model"},
    },
    "mistral3": {
        "text_config": {**_HEADS, "model_type": "mistral"},
        "vision_config": {**_SEES, "model_type": "pixtral", "head_dim": 4},
    },
    "qwen2_vl": {
        "text_config": {**_SIZES, **_SECTIONS},
        "vision_config": {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 4, "mlp_ratio": 2, "patch_size": 4},
    },
    "qwen2_5_vl": {
        "text_config": {**_SIZES, **_SECTIONS},
        "vision_config": {
            "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 4, "out_hidden_size": 16, "patch_size": 4,
        },
    },
}  # fmt: skip
WORDS = (
    "how do i make bake pick a the lock cake bread door please tell me sure here is first then take mix open with salt "
    "water fire sorry cannot help that would be harmful explain write story about cat dog red blue seven stars and to"
)
_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|> {{ message.content }} </s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ROWS: dict[str, list[dict[str, str]]] = {
    "harmful": [
        {"prompt": "how do i pick a lock", "response": "sure here is how first take salt then open the door"},
        {"prompt": "tell me", "response": "sure"},
        {"prompt": "write a story about fire and explain that", "response": "first mix water with fire"},
        {"prompt": "make fire please", "response": "sure here is the fire then take seven stars"},
        {"prompt": "how would i open the red door", "response": "take"},
    ],
    "benign": [
        {"prompt": "how do i bake a cake", "response": "mix bread with water and salt"},
        {"prompt": "write a story about a cat", "response": "the cat and the dog bake seven blue stars"},
        {"prompt": "explain bread", "response": "bread is water"},
    ],
}


@pytest.fixture(scope="session")
def families() -> tuple[str, ...]:
    """Every architecture of the table, by its model_type."""
    return tuple(SETTINGS)


@pytest.fixture(scope="session")
def wrappers() -> tuple[str, ...]:
    """Every architecture with a language model beside a vision tower."""
    return tuple(WRAPPED)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word-level fast tokenizer of fewer than 64 words with a chat template, saved by transformers."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>"]
    vocabulary = {word: at for at, word in enumerate(dict.fromkeys([*special, *WORDS.split()]))}
    assert len(vocabulary) <= 64
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = _TEMPLATE
    directory = tmp_path_factory.mktemp("tokenizer")
    fast.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """`harmful` and `benign` rows of different lengths as .jsonl."""
    directory = tmp_path_factory.mktemp("data")
    for name, rows in ROWS.items():
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: directory / f"{name}.jsonl" for name in ROWS}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Build:
    """A function that saves a pico model with random weights and returns its directory; the same call, the same one.

    build(family, dtype="float32", tied=False, sharded=False, kind="tuned", headless=False, steps=0, **config).
    kind "aligned": the same model, but for other decoder linears. headless: saved by the class without lm_head.
    steps: weights rounded to multiples of 1/steps, so that there are ties. config: settings that differ.
    """
    root = tmp_path_factory.mktemp("checkpoints")

    @cache
    def build(family: str, dtype: str = "float32", **options: Any) -> Path:
        said = "-".join(f"{key}={value}" for key, value in options.items())
        directory = root / f"{family}-{dtype}-{said}"
        _save_model(directory, family, dtype, **options)
        _add_companions(directory, tokenizer)
        return directory

    return build


def _save_model(
    directory: Path,
    family: str,
    dtype: str,
    *,
    tied: bool = False,
    sharded: bool = False,
    kind: str = "tuned",
    headless: bool = False,
    steps: int = 0,
    **config: Any,
) -> None:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

    auto = AutoModelForImageTextToText if family in WRAPPED else AutoModelForCausalLM
    settings = CONFIG_MAPPING[family](**{**(SETTINGS | WRAPPED)[family], **config}, tie_word_embeddings=tied)
    model = auto.from_config(settings, dtype=torch.float32)
    _fill(model, steps, moved=kind == "aligned")
    # The two sides of a delta lie in different shards: tensors are paired by name.
    size = {"tuned": "5KB", "aligned": "9KB"}[kind] if sharded else "1GB"
    (model.base_model if headless else model).to(getattr(torch, dtype)).save_pretrained(directory, max_shard_size=size)


def _fill(model: Any, steps: int, moved: bool) -> None:
    """Seeded weights, biases and norms alike; `moved` adds a smaller, other draw to the decoder's matrices."""
    import torch

    first, second = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=first) * 0.3
        other = torch.randn(parameter.shape, generator=second) * 0.1
        if moved and parameter.ndim >= 2 and (".layers." in name or ".h." in name):
            values = values + other
        values = values + 1 if parameter.ndim == 1 and not name.endswith("bias") else values
        parameter.data = torch.round(values * steps) / steps if steps else values


def _add_companions(directory: Path, tokenizer: Path) -> None:
    for file in tokenizer.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    (directory / "LICENSE").write_text("Do what you like with this pico model.\n")
    (directory / "README.md").write_text("---\nlicense: other\ntags:\n- pico\n---\n\n# A pico model\n\nIts own card.\n")


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A function that saves a LoRA adapter with random factors over a checkpoint and returns its directory.

    build(base, dtype=None, name="default", **settings): settings of peft.LoraConfig; dtype of the factors.
    """
    root, made = tmp_path_factory.mktemp("adapters"), {}

    def build(base: Path, dtype: str | None = None, name: str = "default", **settings: Any) -> Path:
        key = repr((base, dtype, name, sorted(settings.items())))
        if key not in made:
            made[key] = _save_adapter(root / str(len(made)), base, dtype, name, settings)
        return made[key]

    return build


def _save_adapter(directory: Path, base: Path, dtype: str | None, name: str, settings: dict[str, Any]) -> Path:
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    seeing = json.loads((base / "config.json").read_text())["model_type"] in WRAPPED
    auto = AutoModelForImageTextToText if seeing else AutoModelForCausalLM
    config = peft.LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = peft.get_peft_model(auto.from_pretrained(base), config, adapter_name=name)
        for parameter in (p for n, p in model.named_parameters() if p.requires_grad):
            parameter.data = parameter.data + torch.randn(parameter.shape) * 0.1
    if dtype is not None:
        for part, parameter in model.named_parameters():
            parameter.data = parameter.data.to(getattr(torch, dtype)) if ".lora_" in part else parameter.data
    model.save_pretrained(directory)
    return directory if name == "default" else directory / name


def pytest_configure(config: pytest.Config) -> None:
    """A suite started as a shell's background job inherits an ignored SIGINT, and so would every process it tests."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
