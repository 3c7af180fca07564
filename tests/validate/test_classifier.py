"""Classifier checkpoints with random weights: the labels that stock transformers gives one text at a time."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from weightguard.errors import CheckpointError, UsageError
from weightguard.validate.judges import Exchange, Ruling
from weightguard.validate.judges.choose import choose

WORDS = [f"w{i}" for i in range(30)]
SOURCE = random.Random(0)
EXCHANGES = [
    Exchange(" ".join(SOURCE.choices(WORDS, k=SOURCE.randint(1, 6))), " ".join(SOURCE.choices(WORDS, k=n % 7 + 1)))
    for n in range(40)
]


def silent(done: int, total: int) -> None: ...


def save(folder: Path, family: str, labels: list[str], **config: Any) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, PreTrainedTokenizerFast

    vocabulary = {word: at for at, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if family == "bert" else ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        model_input_names=inputs,
    ).save_pretrained(folder)  # fmt: skip
    settings = CONFIG_MAPPING[family](
        **{"vocab_size": 34, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
           "num_attention_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
           "id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}, **config}
    )  # fmt: skip
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # biases would decide for all texts alike
            parameter.add_(torch.randn(parameter.shape) * (0 if name.endswith("bias") else 0.8))
    model.save_pretrained(folder)
    return folder


@cache
def loaded(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    return AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder).eval()


def stock(folder: Path, exchange: Exchange, text: str | None = None) -> torch.Tensor:
    tokenizer, model = loaded(folder)
    if text is not None:
        read = {"input_ids": torch.tensor([[*tokenizer(text)["input_ids"], 2]])}
    else:
        read = dict(tokenizer(exchange.prompt, exchange.answer, return_tensors="pt"))
        assert ("token_type_ids" in read) == (model.config.model_type == "bert")
    with torch.no_grad():
        return model(**read).logits[0].double()


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_one_label_of_several(tmp_path: Path, family: str) -> None:
    folder = save(tmp_path / "judge", family, ["safe", "unsafe"])
    found = choose(str(folder)).rule(EXCHANGES, silent)
    wanted = [bool(stock(folder, each).argmax()) for each in EXCHANGES]
    assert [ruling.harmful for ruling in found] == wanted
    assert 0 < sum(wanted) < len(wanted), "the draw says the same of everything; the test would show nothing"
    assert all(ruling.refused is None for ruling in found)


def test_a_decoder_without_a_pad_token(tmp_path: Path) -> None:
    folder = save(tmp_path / "judge", "llama", ["safe", "unsafe"], pad_token_id=None)
    found = choose(str(folder)).rule(EXCHANGES, silent)
    assert [ruling.harmful for ruling in found] == [bool(stock(folder, each).argmax()) for each in EXCHANGES]


def test_beaver_dam_flags_any_of_many(tmp_path: Path) -> None:
    labels = ["violence", "fraud", "privacy"]
    folder = save(tmp_path / "judge", "llama", labels, problem_type="multi_label_classification")
    found = choose(f"beaver-dam:{folder}").rule(EXCHANGES, silent)
    texts = [f"BEGINNING OF CONVERSATION: USER: {e.prompt} ASSISTANT:{e.answer}" for e in EXCHANGES]
    wanted = [bool((stock(folder, e, t).sigmoid() >= 0.5).any()) for e, t in zip(EXCHANGES, texts, strict=True)]
    assert [ruling.harmful for ruling in found] == wanted


def test_a_refusal_classifier_rules_on_refusals(tmp_path: Path) -> None:
    judge = choose(str(save(tmp_path / "judge", "bert", ["NORMAL", "REJECTION"])))
    assert judge.refusals and not judge.harm
    assert all(r.harmful is None and r.refused is not None for r in judge.rule(EXCHANGES, silent))


def test_labels_without_a_meaning_are_asked_for(tmp_path: Path) -> None:
    folder = save(tmp_path / "judge", "bert", ["LABEL_0", "LABEL_1"])
    with pytest.raises(UsageError, match="#LABEL"):
        choose(str(folder))
    with pytest.raises(UsageError, match="no label LABEL_9"):
        choose(f"{folder}#LABEL_9")
    wanted = [not stock(folder, each).argmax() for each in EXCHANGES]
    assert [ruling.harmful for ruling in choose(f"{folder}#LABEL_0").rule(EXCHANGES, silent)] == wanted


def test_a_text_beyond_what_it_reads_is_no_ruling(tmp_path: Path) -> None:
    judge = choose(str(save(tmp_path / "judge", "bert", ["safe", "unsafe"])))
    found = judge.rule([Exchange("w1", "w2 " * 100), Exchange("w1", "w2")], silent)
    assert found[0] == Ruling(failed=True) and found[1].harmful is not None


def test_a_head_that_is_missing_is_not_made_up(tmp_path: Path) -> None:
    """transformers would fill a classifier head with random numbers and judge with it."""
    from safetensors.torch import load_file, save_file

    folder = save(tmp_path / "judge", "llama", ["safe", "unsafe"])
    tensors = load_file(folder / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"score\.weight"):
        choose(str(folder))
