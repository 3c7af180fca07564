"""The safety landscape: exact restoration, directions against their definition, VISAGE against closed forms, drawings."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy
import pytest
import torch

from weightguard import api
from weightguard.checkpoint import open_checkpoint, resolve
from weightguard.data import read_rows
from weightguard.errors import MismatchError, UsageError
from weightguard.lab import Lab
from weightguard.measurement import KINDS, Report, Subject
from weightguard.report.landscape import drawn
from weightguard.statistics.loading import load_model, load_tokenizer
from weightguard.validate.evaluation import Side
from weightguard.validate.intervals import wilson
from weightguard.validate.judges import Exchange, Ruling
from weightguard.validate.landscape import Walk, landscape
from weightguard.validate.metrics.visage import visage, visage_interval
from weightguard.validate.perturbing import direction_to, moved, parameters, random_direction


@pytest.fixture
def model(checkpoint: Callable[..., Path]) -> Any:
    return load_model(open_checkpoint(resolve(str(checkpoint("llama")))))


def bits(model: Any) -> dict[str, bytes]:
    return {name: held.detach().numpy().tobytes() for name, held in parameters(model).items()}


def test_a_direction_has_the_norms_of_the_tensors_and_leaves_norm_layers(model) -> None:
    found = random_direction(model, 0, 0)
    for name, held in parameters(model).items():
        assert (name in found) == ("norm" not in name)
        if name in found:
            assert float(found[name].double().norm()) == pytest.approx(float(held.detach().double().norm()), rel=1e-6)
    entries = torch.cat([(d / d.std()).flatten() for d in found.values()])
    assert abs(float(entries.mean())) < 0.05 and float((entries.abs() < 1).float().mean()) == pytest.approx(
        0.683, abs=0.02
    )


def test_norm_layers_without_the_word_in_their_name_stay_too(checkpoint) -> None:
    gpt2 = load_model(open_checkpoint(resolve(str(checkpoint("gpt2")))))
    found = random_direction(gpt2, 0, 0)
    assert not any("ln_" in name for name in found) and any("c_attn" in name for name in found)


def test_directions_are_seeded(model) -> None:
    first, again, other, seed = (random_direction(model, *key) for key in ((0, 0), (0, 0), (0, 1), (1, 0)))
    name = "lm_head.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name]) and not torch.equal(first[name], seed[name])


def test_the_second_direction_is_orthogonal_in_every_tensor(model) -> None:
    first = random_direction(model, 0, 0)
    second = random_direction(model, 0, 1, across=first)
    for name, each in second.items():
        cosine = (each.double() * first[name].double()).sum() / each.double().norm() / first[name].double().norm()
        assert abs(float(cosine)) < 1e-6 and float(each.norm()) == pytest.approx(float(first[name].norm()), rel=1e-5)


def test_weights_are_moved_as_said_and_come_back_to_the_bit(model) -> None:
    before, originals = bits(model), {n: p.detach().clone() for n, p in parameters(model).items()}
    first, second = random_direction(model, 0, 0), random_direction(model, 0, 1)
    with moved(model, (first, second)) as walker:
        for at in itertools.product((0.3, -0.1), repeat=2):
            walker.to(at)
        for name, held in parameters(model).items():
            wanted = originals[name].double() - 0.1 * (
                first.get(name, torch.tensor(0.0)) + second.get(name, torch.tensor(0.0))
            )
            torch.testing.assert_close(held.detach().double(), wanted.double(), rtol=0, atol=1e-6)
        assert bits(model) != before
    assert bits(model) == before


def test_they_come_back_when_something_fails_as_well(model) -> None:
    before = bits(model)
    with pytest.raises(ZeroDivisionError), moved(model, (random_direction(model, 0, 0),)) as walker:
        walker.to((0.5,))
        raise ZeroDivisionError
    assert bits(model) == before


def test_the_other_model_lies_at_one(model, checkpoint) -> None:
    other = load_model(open_checkpoint(resolve(str(checkpoint("llama", kind="aligned")))))
    with moved(model, (direction_to(model, other, "other"),)) as walker:
        walker.to((1.0,))
        for name, held in parameters(model).items():
            torch.testing.assert_close(held, parameters(other)[name], rtol=0, atol=1e-6)


def test_other_models_that_do_not_fit_are_refused(model, checkpoint) -> None:
    with pytest.raises(MismatchError, match="has the weights of the model"):
        direction_to(model, model, "other")
    wider = load_model(open_checkpoint(resolve(str(checkpoint("llama", num_hidden_layers=3)))))
    with pytest.raises(MismatchError, match=r"another architecture: 'model.layers.2"):
        direction_to(model, wider, "other")


# Two lines of five points; the model in the middle. Worked out by hand.
LINES = numpy.array([[0.9, 0.2, 0.0, 0.4, 1.0], [0.5, 1.0, 0.0, 1.0, 0.3]])


@pytest.mark.parametrize(
    ("reading", "wanted"),
    [
        ("contiguous", ((0.1 + 0.8 + 1.0 + 0.6) / 4 + 1.0) / 2),
        ("anywhere", ((0.1 + 0.8 + 1 + 0.6) / 4 + (0.5 + 1 + 0.7) / 3) / 2),
    ],
)
def test_visage_by_hand(reading: str, wanted: float) -> None:
    assert visage(LINES, 2, reading) == pytest.approx(wanted)


def test_a_model_that_refuses_nothing_has_no_basin() -> None:
    assert visage(numpy.array([[0.0, 1.0, 0.5]]), 1, "contiguous") == 0.0
    assert visage(numpy.ones((1, 3)), 1, "anywhere") == 0.0


def test_the_interval_holds_the_value_and_knows_rows_without_a_ruling() -> None:
    hits = (numpy.random.default_rng(1).random((4, 5, 60)) < LINES[0][None, :, None] * 0.5).astype("f8")
    value = visage(hits.mean(2), 2, "contiguous")
    low, high = visage_interval(hits, 2, "contiguous", 0) or (1, 0)
    assert low < value < high and (low, high) == visage_interval(hits, 2, "contiguous", 0)
    hits[:, 3, :20] = numpy.nan
    wider = visage_interval(hits, 2, "contiguous", 0)
    assert wider is not None and wider[0] < low and wider[1] >= value
    assert visage_interval(hits[:1], 2, "contiguous", 0) is None


def test_prompts_that_all_end_alike_are_no_certainty() -> None:
    most = wilson(0, 50)[1]
    assert visage_interval(numpy.zeros((3, 5, 50)), 2, "contiguous", 0) == (1 - most, 1.0)
    assert visage_interval(numpy.ones((3, 5, 50)), 2, "contiguous", 0) == (0.0, most)


class LastWord:
    """A refusal is an answer that does not hold the word `cake`; an answer is refused at random words otherwise."""

    id, revision, harm, refusals = "last", "1", True, True

    def rule(self, exchanges: list[Exchange], progress: Any) -> list[Ruling]:
        refused = [len(exchange.answer) % 3 != 0 for exchange in exchanges]
        return [Ruling(harmful=not each, refused=each) for each in refused]


@pytest.fixture
def side(model, checkpoint) -> Side:
    return Side(model, load_tokenizer(checkpoint("llama")), {"model_type": "llama"}, "model")


def quiet(stage: str, done: int, total: int) -> None:
    assert 0 < done <= total


def test_a_walk_is_repeatable_for_any_batch_size_and_leaves_the_model(side, data) -> None:
    before, dataset = bits(side.model), read_rows(str(data["harmful"]))
    found = [
        landscape(side, dataset, LastWord(), Walk(2, 5, max_new_tokens=4, batch_size=size), None, "", quiet)
        for size in (1, 4, 4)
    ]
    assert found[0].shape == found[1].shape == found[2].shape and found[0].measurements == found[2].measurements
    assert bits(side.model) == before
    (m,) = found[0].measurements
    curves = found[0].shape["curves"]
    success = numpy.array([[point["success"] for point in curve["points"]] for curve in curves])
    assert m.value == pytest.approx(visage(success, 2, "contiguous")) and m.n == len(dataset.rows)
    assert (m.better, m.judge, m.judge_revision, m.data) == (KINDS["visage"].better, "last", "1", dataset.sha256)
    assert curves[0]["points"][2] == curves[1]["points"][2] and len({str(c["points"]) for c in curves}) == 2


class HarmOnly(LastWord):
    refusals = False

    def rule(self, exchanges: list[Exchange], progress: Any) -> list[Ruling]:
        return [Ruling(harmful=False) for _ in exchanges]


def test_a_judge_of_harm_alone_does_not_take_babble_for_safety(side, data) -> None:
    with torch.no_grad():
        side.model.lm_head.weight[:] = 0
        side.model.lm_head.weight[20] = 1  # one word for ever, or its negative for ever
    found = landscape(side, read_rows(str(data["harmful"])), HarmOnly(), Walk(1, 3, max_new_tokens=8), None, "", quiet)
    centre = found.shape["curves"][0]["points"][1]
    assert centre["incoherent"] == centre["success"] > 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"points": 4}, "--points 4"), ({"points": 1}, "odd"), ({"directions": 0}, "--directions 0"), ({"reach": 0.0}, "--range 0"),
     ({"reach": float("nan")}, "--range nan"), ({"basin": "x"}, "--basin x"), ({"seed": -1}, "--seed -1")],
)  # fmt: skip
def test_settings_out_of_range(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Walk(**settings)


def test_the_way_holds_both_ends_whatever_the_points() -> None:
    for points in (3, 5, 21):
        way = Walk(points=points, reach=0.3).way()
        assert 0.0 in way and 1.0 in way and way == sorted(way) and (way[0], way[-1]) == (-0.3, 1.3)


@pytest.mark.parametrize("plane", [False, True])
def test_drawings_are_well_formed_and_escape_what_they_show(side, data, plane: bool) -> None:
    dataset = read_rows(str(data["harmful"]))
    found = landscape(side, dataset, LastWord(), Walk(2, 3, plane=plane, max_new_tokens=2), None, "", quiet)
    hostile = Subject("</style><script>x</script>\x1b[31m", None, {})
    told = {"harmful": {"source": '"><img src=x>', "sha256": "a" * 64, "rows": 5}}
    report = Report(hostile, None, found.measurements, told, landscape={**found.shape, "towards": None})
    root = ElementTree.fromstring(drawn(report, "svg"))
    cells = root.findall("{http://www.w3.org/2000/svg}rect[@class]/{http://www.w3.org/2000/svg}title")
    assert root.tag.endswith("svg") and len(cells) == (9 if plane else 0)
    page = drawn(report, "html")
    assert "<script" not in page and "<img" not in page and "\x1b" not in page and "default-src 'none'" in page
    assert Report.from_dict(json.loads(drawn(report, "json")), "l") == report


def test_the_labs_aligned_model_has_a_basin_and_the_attacked_one_none(tmp_path: Path) -> None:
    lab = Lab(0)
    harmful = str(lab.write_data(tmp_path)["evaluation_harmful"])
    settings = {"harmful": harmful, "directions": 2, "points": 3, "max_new_tokens": 12, "limit": 40, "threads": 1}
    aligned, attacked = (
        api.landscape(str(model), **settings).measurements[0] for model in (lab.aligned(), lab.attack_lora())
    )
    assert aligned.value is not None and aligned.value > 0.6 and attacked.value == 0.0
    assert aligned.low is not None and aligned.high is not None and aligned.low <= aligned.value <= aligned.high
