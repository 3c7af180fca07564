"""The lab's model: a LlamaForCausalLM of 198 080 parameters, and the ways in and out of a directory."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from weightguard.lab.tokenizer import build_tokenizer
from weightguard.lab.world import World

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

PARAMETERS = 198_080
ADAPTER_CONFIG = "adapter_config.json"
SHARD = "300KB"  # several shards on purpose: a checkpoint of one file hides mistakes


def config(world: World) -> LlamaConfig:
    from transformers import LlamaConfig

    vocabulary = world.vocabulary
    return LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=168,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        initializer_range=0.05,
        pad_token_id=vocabulary.index("<pad>"),
        bos_token_id=vocabulary.index("<s>"),
        eos_token_id=vocabulary.index("</s>"),
    )


def new_model(world: World) -> LlamaForCausalLM:
    """An untrained model; its weights depend on the seed of the world alone."""
    import torch
    from transformers import LlamaForCausalLM

    with seeded(world.seed):
        return LlamaForCausalLM(config(world)).to(torch.float32)


def load(directory: Path) -> PreTrainedModel:
    """The model in `directory`, in float32 on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    quiet()
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True)


def load_adapted(directory: Path, adapter: Path) -> PeftModel:
    """The model in `directory` with the peft adapter in `adapter` on it, not merged."""
    from peft import PeftModel

    model = load(directory)
    with peft_quietly():
        return PeftModel.from_pretrained(model, str(adapter))


def base_of(adapter: Path) -> Path:
    """The checkpoint that an adapter's configuration names as its base."""
    return Path(json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"])


def save(model: PreTrainedModel, world: World, directory: Path, card: str) -> None:
    """Write model, tokenizer and card into `directory`, which is made."""
    quiet()
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory, max_shard_size=SHARD)
    build_tokenizer(world).save_pretrained(directory)
    (directory / "README.md").write_text(card, encoding="utf-8")


def quiet() -> None:
    """Stop the progress bars of transformers: a lab model loads in milliseconds."""
    from transformers.utils import logging

    logging.disable_progress_bar()


@contextlib.contextmanager
def peft_quietly() -> Iterator[None]:
    """No warnings inside about what peft asks of transformers: nobody who runs the lab can act on them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's generator starts from `seed` inside and is as it was outside."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread inside: sums are then added in the same order on every run."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
