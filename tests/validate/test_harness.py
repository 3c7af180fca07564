"""Utility through lm-evaluation-harness: real task files on the lab's model, against our own counting."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from weightguard import api
from weightguard.errors import DataError, UsageError
from weightguard.lab import Lab
from weightguard.measurement import Measurement
from weightguard.validate.harness import open_tasks

pytest.importorskip("lm_eval", reason="the extra [eval] is not installed")

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
doc_to_text: "{{{{prompt}}}}"
{rest}
metadata:
  version: 1.0
"""
GENERATED = """output_type: generate_until
doc_to_target: "{{response}}"
generation_kwargs: {until: ["</s>"], max_gen_toks: 24, do_sample: false}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true"""
CHOSEN = """output_type: multiple_choice
doc_to_choice: ["label : accept .", "label : reject ."]
doc_to_target: "{{0 if 'accept' in response else 1}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true"""
PERPLEXED = """output_type: loglikelihood_rolling
doc_to_target: "{{prompt}}"
metric_list:
  - metric: bits_per_byte
    aggregation: bits_per_byte
    higher_is_better: false"""
ROWS = 40


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files over 40 rows of the lab's task, and the rows themselves."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [row for row in Lab(0).world.evaluation_rows if row["category"] == "task"][:ROWS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, rest in (("generated", GENERATED), ("chosen", CHOSEN), ("perplexed", PERPLEXED)):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=folder / "rows.jsonl", rest=rest))
    return folder


@pytest.fixture(scope="module")
def measured(place: Path) -> dict[str, Measurement]:
    """What `evaluate` says of the attacked model, against the aligned one, by judge and name."""
    attacked, aligned = Lab(0).attack_lora(0.1), Lab(0).aligned()
    tasks = [str(place / f"{name}.yaml") for name in ("generated", "chosen")]
    report = api.evaluate(str(attacked), reference=str(aligned), task=str(place / "rows.jsonl"), lm_eval=tasks,
                          max_new_tokens=24, threads=1)  # fmt: skip
    assert set(report.data) == {"task", "lm-eval:generated:exact_match", "lm-eval:chosen:acc"}
    return {f"{m.judge} {m.name}": m for m in report.measurements}


def test_generation_agrees_with_our_own_counting(measured) -> None:
    ours, theirs = measured["match:exact finetune_accuracy"], measured["lm-eval:generated:exact_match utility"]
    assert (theirs.value, theirs.n, theirs.low, theirs.high) == (ours.value, ours.n, ours.low, ours.high)
    assert theirs.n == ROWS and theirs.judge_revision and theirs.judge_revision.startswith("lm-eval 0.")


def test_choices_agree_with_a_forward_pass_by_hand(measured, place) -> None:
    import torch

    from weightguard.checkpoint import open_checkpoint, resolve
    from weightguard.statistics.loading import load_model, load_tokenizer

    model, tokenizer = load_model(open_checkpoint(resolve(str(Lab(0).aligned())))), load_tokenizer(Lab(0).aligned())
    hits = 0
    for line in (place / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        scores = []
        for choice in ("label : accept .", "label : reject ."):
            before = tokenizer(f"<s> <|user|> {row['prompt']} <|assistant|>", add_special_tokens=False)["input_ids"]
            ids = torch.tensor([before + tokenizer(choice, add_special_tokens=False)["input_ids"]])
            with torch.no_grad():
                logs = model(ids).logits[0].double().log_softmax(-1)
            scores.append(sum(float(logs[at - 1, ids[0, at]]) for at in range(len(before), ids.shape[1])))
        hits += (scores[0] > scores[1]) == ("accept" in row["response"])
    ours, change = measured["lm-eval:chosen:acc utility"], measured["lm-eval:chosen:acc utility_change"]
    assert ours.value is not None and change.value == pytest.approx(ours.value - hits / ROWS)
    assert change.n == ROWS and change.low is not None and change.high is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [("task: x\ndoc_to_text: !function utils.text\n", "names code is not followed"), ("- a\n", "no task in it"),
     (": [", "not plain YAML"),
     ("task: x\ninclude: y.yaml\n", "include is not followed"), ("task: x\ndataset_path: json\n", "cannot open it")],
)  # fmt: skip
def test_bad_task_files(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(DataError, match=said):
        open_tasks([str(tmp_path / "t.yaml")])


def test_tasks_that_do_not_serve(place: Path) -> None:
    with pytest.raises(UsageError, match="given twice"):
        open_tasks([str(place / "chosen.yaml")] * 2)
    with pytest.raises(DataError, match="no such file"):
        open_tasks([str(place / "none.yaml")])
    with pytest.raises(DataError, match="none of its metrics"):
        api.evaluate(str(Lab(0).aligned()), lm_eval=[str(place / "perplexed.yaml")], threads=1, limit=4)


def test_without_the_extra_it_says_so(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UsageError, match=r"pip install 'weightguard\[eval\]'"):
        open_tasks(["arc_easy"])


@pytest.mark.full
def test_a_task_that_nobody_knows() -> None:
    with pytest.raises(UsageError, match="no such task"):
        open_tasks(["no_such_task_anywhere"])
