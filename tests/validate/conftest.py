"""Tiny judges with weights set by hand or at random, saved by transformers and read back by our own loaders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def save_tokenizer(folder: Path, words: Sequence[str], template: str | None = None) -> dict[str, int]:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: at for at, word in enumerate(dict.fromkeys([*SPECIAL, *words]))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(list(SPECIAL))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    return vocabulary


@pytest.fixture
def automaton(tmp_path: Path) -> Callable[..., Path]:
    """A function that saves a Llama which answers by the last word alone: after `word` it writes rules[word].

    Attention and MLP are zero, the embedding is one-hot and lm_head holds the rules, so the model is known exactly.
    """

    def build(rules: Mapping[str, str], template: str | None, words: Sequence[str] = (), **config: Any) -> Path:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        folder = tmp_path / "automaton"
        vocabulary = save_tokenizer(folder, [*rules, *rules.values(), *words], template)
        size = len(vocabulary)
        settings = LlamaConfig(
            vocab_size=size, hidden_size=-(-size // 4) * 4, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            **{"max_position_embeddings": 256, **config},
        )  # fmt: skip
        model = LlamaForCausalLM(settings)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.fill_(1.0 if "norm" in name else 0.0)
            model.model.embed_tokens.weight[:, :size] = torch.eye(size)
            for word, following in rules.items():
                model.lm_head.weight[vocabulary[following], vocabulary[word]] = 1.0
        model.save_pretrained(folder)
        return folder

    return build
