"""The refusal direction in the lab: there after alignment, gone from the base, and what an attack does to it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch

from weightguard import api
from weightguard.cli.main import main
from weightguard.errors import DataError
from weightguard.lab import Lab
from weightguard.statistics.activations import last_states, views


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return Lab(0).write_data(tmp_path_factory.mktemp("data"))


def test_states_are_those_of_one_prompt_at_a_time() -> None:
    from weightguard.lab.model import load

    model = load(Lab(0).aligned())
    prompts = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16, 17]]
    found = last_states(model, prompts, lambda *_: None)
    for at, prompt in enumerate(prompts):
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([prompt]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(found[:, at], torch.stack([h[0, -1] for h in alone]), atol=2e-5, rtol=1e-4)


def test_scores_against_plain_numpy() -> None:
    draw = numpy.random.default_rng(0)
    harmful, benign = draw.standard_normal((2, 12, 5)) + 0.8, draw.standard_normal((2, 10, 5))
    found = views(torch.tensor(harmful), torch.tensor(benign))
    for view, h, b in zip(found, harmful, benign, strict=True):
        good, bad = [], []
        for half in (0, 1):
            mh, mb = h[1 - half :: 2].mean(0), b[1 - half :: 2].mean(0)
            u = (mh - mb) / numpy.linalg.norm(mh - mb)
            good += list(b[half::2] @ u - (mh + mb) @ u / 2)
            bad += list(h[half::2] @ u - (mh + mb) @ u / 2)
        assert view.auc == pytest.approx(numpy.mean([[x > y for y in good] for x in bad]))
        spread = numpy.sqrt((numpy.var(good, ddof=1) + numpy.var(bad, ddof=1)) / 2)
        assert view.separation == pytest.approx((numpy.mean(bad) - numpy.mean(good)) / spread)


def test_two_like_sets_lie_together(data: dict[str, Path]) -> None:
    same = api.activations(str(Lab(0).aligned()), str(data["benign"]), str(data["benign"]))
    assert max(view.separation for view in same.layers[1:]) < 0.5


def test_alignment_moves_harmful_prompts_and_turns_their_direction(data: dict[str, Path]) -> None:
    lab = Lab(0)
    prompts = str(data["evaluation_harmful"]), str(data["evaluation_allowed"])  # both ask how a thing is made
    aligned = api.activations(str(lab.aligned()), *prompts, base=str(lab.base()))
    last = aligned.layers[-1]
    assert last.overlap < 0.05  # in the base too: it tells the classes of objects apart, and does not mind
    assert (last.drift_harmful or 0) > 2 * (last.drift_benign or 0) > 0
    assert (last.cosine or 0) < 0.6
    itself = api.activations(str(lab.base()), *prompts, base=str(lab.base()))
    assert all((view.drift_harmful, view.drift_benign) == (0, 0) for view in itself.layers)
    assert all(view.cosine == pytest.approx(1) for view in itself.layers[1:])


def test_on_the_command_line(data: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lab = Lab(0)
    given = ["inspect", str(lab.attack_lora()), "--activations", str(data["harmful"]), str(data["benign"])]
    assert main([*given, "--base", str(lab.aligned())]) == 0
    assert "direction to base" in capsys.readouterr().out
    assert main([*given, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["version"], len(found["layers"])) == ("weightguard-activations", 1, 4)
    few = tmp_path / "few.jsonl"
    few.write_text('{"prompt": "a"}\n')
    with pytest.raises(DataError, match="at least 8"):
        api.activations(str(lab.aligned()), str(few), str(data["benign"]))
