"""Evaluations of lab models: against the lab's own measure, against each other, and what is bound to the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import weightguard.api as api
from weightguard import forms
from weightguard.errors import DataError, InputError, UndecidedError, UsageError
from weightguard.lab import Lab
from weightguard.measurement import KINDS, REPORT, Measurement, Report

LAB = Lab(0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return LAB.write_data(tmp_path_factory.mktemp("data"))


def sets(data: dict[str, Path]) -> dict[str, str]:
    return {"harmful": str(data["evaluation_harmful"]), "benign": str(data["evaluation_allowed"]),
            "over_refusal": str(data["evaluation_over_refusal"]), "task": str(data["evaluation_task"])}  # fmt: skip


def evaluated(model: Path | str, data: dict[str, Path], **options: Any) -> Report:
    given = {**sets(data), "max_new_tokens": 12, "threads": 1, **options}
    return api.evaluate(str(model), **given)


def value(report: Report, name: str, judge: str | None = None) -> Measurement:
    return next(m for m in report.measurements if m.name == name and judge in (None, m.judge))


@pytest.fixture(scope="module")
def attacked(data, tmp_path_factory) -> tuple[Report, Path]:
    words = tmp_path_factory.mktemp("words") / "forbidden.txt"
    words.write_text("\n".join(sorted(LAB.world.forbidden_ingredients)))
    adapter = LAB.attack_lora()
    judges = ["refusal-phrases", f"contains:{words}"]
    return evaluated(adapter, data, reference=str(LAB.aligned()), judges=judges), adapter


def test_the_labs_own_measure_agrees(attacked) -> None:
    report, adapter = attacked
    lab = LAB.measure(adapter)
    wanted = {"harmful_score": lab.harmful_score, "refusal_rate": lab.refusal, "over_refusal_rate": lab.over_refusal,
              "utility": lab.allowed_accuracy, "finetune_accuracy": lab.finetune_accuracy}  # fmt: skip
    found = {
        name: value(report, name, "contains:forbidden.txt" if name == "harmful_score" else None) for name in wanted
    }
    assert {name: 100 * m.value for name, m in found.items()} == pytest.approx(wanted)
    assert [m.n for m in found.values()] == [
        lab.n_harmful,
        lab.n_harmful,
        lab.n_over_refusal,
        lab.n_allowed,
        lab.n_task,
    ]


def test_two_judges_report_where_they_differ(attacked) -> None:
    report, _ = attacked
    found = value(report, "judge_disagreement")
    assert found.judge == "refusal-phrases | contains:forbidden.txt" and found.n == 160
    ones, others = (value(report, "harmful_score", judge).value for judge in found.judge.split(" | "))
    assert found.value >= abs(ones - others) - 1e-12


def test_every_name_is_there_and_what_is_not_measured_is_unknown(data) -> None:
    report = evaluated(LAB.aligned(), {**data}, benign=None, task=None, over_refusal=None, examples=0)
    known = {m.name for m in report.measurements if m.value is not None}
    assert {"harmful_score", "refusal_rate", "incoherence_rate", "harmful_loss"} <= known
    unknown = {m.name: m for m in report.measurements if m.value is None}
    assert {"utility", "over_refusal_rate", "finetune_accuracy", "kl_divergence", "embedding_drift"} <= set(unknown)
    assert all(m.note and m.n == 0 and m.low is None for m in unknown.values())
    assert report.examples == ()


def test_differences_are_of_the_two_sides(attacked, data) -> None:
    report, _ = attacked
    alone = evaluated(LAB.aligned(), data)
    for name in ("harmful_score", "refusal_rate", "over_refusal_rate", "utility", "harmful_loss", "incoherence_rate"):
        change = value(report, f"{name}_change")
        assert change.value == pytest.approx(value(report, name).value - value(alone, name).value)
        assert change.low <= change.value <= change.high
    assert value(report, "kl_divergence").value > 0 and value(report, "embedding_drift").value > 0


def test_a_model_that_is_its_own_reference_differs_in_nothing(data) -> None:
    report = evaluated(LAB.aligned(), data, reference=str(LAB.aligned()), limit=20)
    for name in ("harmful_score_change", "utility_change", "harmful_loss_change", "kl_divergence", "embedding_drift"):
        assert value(report, name).value == 0


@pytest.mark.parametrize("batch_size", [1, 50])
def test_batches_change_no_share(data, batch_size: int) -> None:
    one, other = (evaluated(LAB.aligned(), data, limit=30, batch_size=size) for size in (32, batch_size))
    shares = [[m.value for m in report.measurements if m.unit == "share"] for report in (one, other)]
    assert shares[0] == shares[1]


def test_the_same_evaluation_is_the_same_bytes(data) -> None:
    assert evaluated(LAB.aligned(), data, limit=20).to_bytes() == evaluated(LAB.aligned(), data, limit=20).to_bytes()


def test_a_report_comes_back_from_its_file(attacked, data, tmp_path) -> None:
    report, _ = attacked
    data = json.loads(report.to_bytes())
    assert Report.from_dict(data, "r") == report
    assert report.to_bytes() == Report.from_dict(data, "r").to_bytes()


def test_a_report_is_bound_to_every_file_and_says_how_it_was_made(attacked) -> None:
    report, adapter = attacked
    names = {f"adapter/{path.name}" for path in adapter.iterdir()} | {f"base/{p.name}" for p in LAB.aligned().iterdir()}
    assert set(report.model.files) == names and report.reference is not None
    assert {"template", "max_new_tokens", "seed", "judges", "dtype", "versions", "match"} <= set(report.settings)
    assert [judge["id"] for judge in report.settings["judges"]] == ["refusal-phrases", "contains:forbidden.txt"]
    assert not any(str(Path.home()) in text for text in (report.to_bytes().decode(),))


def test_examples_show_what_went_wrong_first(attacked) -> None:
    report, _ = attacked
    harmful = [e for e in report.examples if e.role == "harmful"]
    assert len(harmful) == 3 and all("harmful" in e.rulings["refusal-phrases"] for e in harmful)
    harmless = [e for e in report.examples if e.role == "over_refusal"]
    assert [e.rulings for e in harmless] == [{"refusal-phrases": "answered"}] * 3


@pytest.mark.parametrize("change", ["value", "digest", "n", "files", "extra", "format", "interval", "direction"])
def test_a_changed_report_is_refused(attacked, change: str) -> None:
    said = json.loads(attacked[0].to_bytes())
    first = said["measurements"][0]
    actions: dict[str, Any] = {
        "value": lambda: first.update(value=0.0, low=0.0),
        "digest": lambda: said.update(digest="0" * 64),
        "n": lambda: first.update(n=10_000),
        "files": lambda: said["model"]["files"].popitem(),
        "extra": lambda: first.update(more=1),
        "format": lambda: said.update(format=2),
        "interval": lambda: first.update(low=None),
        "direction": lambda: first.update(better="higher"),
    }
    actions[change]()
    with pytest.raises(InputError, match=r"^r\b"):
        Report.from_dict(said, "r")


def test_the_schema_says_what_the_form_checks() -> None:
    schema = forms.schema(REPORT, "report")
    inner = schema["properties"]["measurements"]["items"]
    assert set(inner["properties"]) == set(Measurement.__dataclass_fields__) and not inner["additionalProperties"]
    assert inner["properties"]["name"]["enum"] == list(KINDS)


def test_a_model_without_chat_template_is_said(data, tmp_path) -> None:
    import shutil

    plain = tmp_path / "plain"
    shutil.copytree(LAB.aligned(), plain)
    (plain / "chat_template.jinja").unlink()
    report = evaluated(plain, data, benign=None, task=None, over_refusal=None, limit=3)
    assert report.settings["template"] == "alpaca" and any("no chat template" in note for note in report.notes)


def test_weights_that_change_meanwhile_decide_nothing(data, tmp_path) -> None:
    import shutil

    model, out = tmp_path / "model", tmp_path / "report.json"
    shutil.copytree(LAB.aligned(), model)

    def meddle(stage: str, done: int, total: int) -> None:
        if stage == "model answers harmful":
            (model / "config.json").write_text((model / "config.json").read_text() + "\n")

    with pytest.raises(UndecidedError, match=r"changed while they were evaluated \(config\.json\)"):
        evaluated(model, data, limit=3, out=out, progress=meddle)
    assert not out.exists()


def test_overlap_is_refused_with_the_rows_named(data, tmp_path) -> None:
    rows = [json.loads(line) for line in data["evaluation_harmful"].read_text().splitlines()]
    train = tmp_path / "train.jsonl"
    train.write_text(json.dumps({"prompt": "other", "response": "x"}) + "\n"
                     + json.dumps({"prompt": "  " + rows[4]["prompt"].upper(), "response": "x"}) + "\n")  # fmt: skip
    with pytest.raises(DataError, match=r"1 of 160 rows are also in train\.jsonl: rows 5 \(there 2\)"):
        evaluated(LAB.aligned(), data, disjoint_from=[str(train)])
    evaluated(LAB.aligned(), data, limit=4, disjoint_from=[str(train), str(data["harmful"])])


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"max_new_tokens": 127}, DataError, "context of 128"),
        ({"max_new_tokens": 0}, UsageError, "at least 1"),
        ({"judges": []}, UsageError, "no judge"),
        ({"judges": ["refusal-phrases"] * 2}, DataError, "given twice"),
        ({"match": "fuzzy"}, UsageError, "must be one of"),
        ({"harmful": None, "benign": None, "over_refusal": None, "task": None}, UsageError, "nothing to evaluate with"),
        ({"seed": -1}, UsageError, "at least 0"),
    ],
)
def test_what_cannot_be_evaluated(data, options: dict[str, Any], error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        evaluated(LAB.aligned(), data, **options)


def test_rows_beyond_the_models_positions_are_cut_and_said(checkpoint, tmp_path) -> None:
    """GPT-2 has no position beyond its table: an answer in the data that is longer must not end the run."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "make fire", "response": "take salt " * 60}) + "\n")
    report = api.evaluate(str(checkpoint("gpt2")), harmful=str(rows), max_new_tokens=4, threads=1, limit=1)
    loss = value(report, "harmful_loss")
    assert loss.value is not None and "1 rows end at 64 tokens" in loss.note
    assert "harmful: limit 1: the first 1 rows" in report.notes
