"""A killed repair goes on with --resume: at most one shard is written again, and the bytes are those of one run."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weightguard.rewrite import publish
from weightguard.rewrite.resume import NAME

Held = dict[str, tuple[Any, ...]]
CALLS, RENAME = 63, 61  # see test_kill
SAMPLED = (5, 8, 12, 44, 60)
SHARDS = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]
AFTER_TWO = 17  # a call in the middle of the third shard


def journal(place: Any) -> Path:
    return place.root / ".out.weightguard-stage" / NAME


def finished(place: Any) -> list[str]:
    """The shards that the journal of the killed run names, in whole lines."""
    lines = journal(place).read_text().splitlines(keepends=True) if journal(place).exists() else []
    return [json.loads(line)["file"] for line in lines if line.endswith("\n")]


def kept(place: Any, *more: str, method: str = "magnitude") -> int:
    """How many shards a run with --resume keeps. A shard that is written makes two files (itself, and its line in the
    journal); the journal of what is kept and ten more are made in any case."""
    ended = place.run(*place.arguments("--resume", *more, method=method), how="count")
    assert ended.code == 0, ended.said
    return 3 - ((place.root / "calls").read_text().split().count("create") - 11) // 2


@pytest.mark.parametrize("at", [pytest.param(n, marks=() if n in SAMPLED else pytest.mark.full) for n in range(CALLS)])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_and_resumed(at: int, when: str, place: Any, reference: Held) -> None:
    before = place.held("model")
    assert place.run(*place.arguments(), at=at, how=f"killed {when}").code == -signal.SIGKILL
    done = finished(place)
    if place.held():
        assert at >= RENAME and place.run(*place.arguments("--resume")).code == 4
    else:
        assert kept(place) == len(done)
    assert place.held() == reference and place.held("model") == before and place.litter() in ([], ["calls"])


def stopped(place: Any, *more: str) -> None:
    """A run that was killed in its third shard."""
    assert place.run(*place.arguments(*more), at=AFTER_TWO, how="killed before").code == -signal.SIGKILL
    assert finished(place) == SHARDS[:2]


def test_without_the_flag_all_is_written_again(place: Any, reference: Held) -> None:
    stopped(place)
    assert place.run(*place.arguments(), how="count").code == 0
    assert (place.root / "calls").read_text().split().count("create") == 16 and place.held() == reference


def test_killed_again_and_again(place: Any, reference: Held) -> None:
    """Each run finishes one more shard at most, and none is written twice."""
    for at, done in ((12, 1), (15, 2)):
        assert place.run(*place.arguments("--resume"), at=at, how="killed before").code == -signal.SIGKILL
        assert len(finished(place)) == done, at
    assert kept(place) == 2 and place.held() == reference


def test_killed_while_the_output_is_read_again(place: Any, reference: Held) -> None:
    """All shards are there by then, and all of them are kept."""

    def prepare() -> None:
        publish.verify_output = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]

    assert place.run(*place.arguments(), prepare=prepare).code == -signal.SIGKILL
    assert finished(place) == SHARDS and kept(place) == 3
    assert place.held() == reference and place.litter() == ["calls"]


@pytest.mark.parametrize("at", range(12))
def test_a_resumed_run_that_is_killed_forgets_nothing(at: int, place: Any, reference: Held) -> None:
    """From its first call to those of the third shard."""
    stopped(place)
    assert place.run(*place.arguments("--resume"), at=at, how="killed after").code == -signal.SIGKILL
    assert kept(place) == 2 and place.held() == reference


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def stage(place: Any) -> Path:
    return journal(place).parent


def retold(place: Any, **said: Any) -> None:
    """The journal with other words in every line."""
    lines = [json.loads(line) | said for line in journal(place).read_text().splitlines()]
    journal(place).write_text("".join(json.dumps(line) + "\n" for line in lines))


def rechanged(place: Any, **said: Any) -> None:
    """The same with other measurements of every edited tensor, of which the first shard has none."""
    lines = [json.loads(line) for line in journal(place).read_text().splitlines()]
    for line in lines:
        line["changes"] = {name: change | said for name, change in line["changes"].items()}
    journal(place).write_text("".join(json.dumps(line) + "\n" for line in lines))


def linked(place: Any) -> None:
    (stage(place) / SHARDS[0]).rename(place.root / "elsewhere")
    (stage(place) / SHARDS[0]).symlink_to(place.root / "elsewhere")


DAMAGE: dict[str, tuple[Callable[[Any], object], int]] = {
    "nothing": (lambda place: None, 2),
    "first shard damaged": (lambda place: flip(stage(place) / SHARDS[0]), 0),
    "second shard damaged": (lambda place: flip(stage(place) / SHARDS[1]), 1),
    "second shard cut": (lambda place: (stage(place) / SHARDS[1]).write_bytes(b"x"), 1),
    "second shard gone": (lambda place: (stage(place) / SHARDS[1]).unlink(), 1),
    "a link out": (linked, 0),
    "a folder in its place": (lambda place: [(stage(place) / SHARDS[0]).unlink(), (stage(place) / SHARDS[0]).mkdir()], 0),
    "journal gone": (lambda place: journal(place).unlink(), 0),
    "journal a link": (lambda place: [journal(place).rename(place.root / "elsewhere"),
                                      journal(place).symlink_to(place.root / "elsewhere")], 0),
    "journal cut": (lambda place: journal(place).write_bytes(journal(place).read_bytes()[:-40]), 1),
    "journal of no sense": (lambda place: journal(place).write_bytes(b"[1]\n\xff\n"), 0),
    "journal of another run": (lambda place: retold(place, run="0" * 64), 0),
    "journal without changes": (lambda place: retold(place, changes={"x": {"y": 1}}), 0),
    "journal of another digest": (lambda place: retold(place, out="0" * 64), 0),
    "journal of another input": (lambda place: retold(place, **{"in": "0" * 64}), 0),
    "journal of words for numbers": (lambda place: rechanged(place, changed="many"), 1),
    "journal of fractions for counts": (lambda place: rechanged(place, entries=1.5), 1),
    "journal of an infinite norm": (lambda place: rechanged(place, weight_norm=1e308 * 10), 1),
    "journal without a norm": (lambda place: rechanged(place, change_norm=None), 1),
    "journal without the changes of a shard": (lambda place: retold(place, changes={}), 1),
    "journal of a list of changes": (lambda place: retold(place, changes=[]), 0),
    "journal without the tensors of a shard": (lambda place: retold(place, tensors_in={}), 0),
    "journal of numbers for digests": (lambda place: retold(place, aligned={"model.norm.weight": 1}), 0),
    "journal of aligned tensors that are none": (lambda place: retold(place, aligned={"x": "0" * 64}), 0),
    "strangers in the stage": (lambda place: [(stage(place) / "sub").mkdir(), (stage(place) / "x").write_text("x")], 2),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_only_what_is_right_is_kept(damage: str, place: Any, reference: Held) -> None:
    spoil, right = DAMAGE[damage]
    stopped(place)
    spoil(place)
    assert kept(place) == right
    assert place.held() == reference and set(place.litter()) <= {"calls", "elsewhere"}


def test_another_plan_keeps_nothing(place: Any) -> None:
    stopped(place)
    assert kept(place, method="random") == 0


def test_another_input_keeps_nothing_of_it(place: Any) -> None:
    """Same layout, one other weight in the second shard."""
    stopped(place)
    flip(place.model / SHARDS[1])
    assert kept(place) == 1
    shutil.rmtree(place.out)
    (place.root / "calls").unlink()
    held = place.held()
    assert held == {} and place.run(*place.arguments()).code == 0


def test_another_aligned_model_keeps_nothing_of_it(place: Any) -> None:
    delta = ("--target", "delta", "--aligned", str(place.root / "other"))
    stopped(place, *delta)
    flip(place.root / "other" / SHARDS[2])  # of the third layer, which is not finished
    assert kept(place, *delta) == 2
    shutil.rmtree(place.out)
    stopped(place, *delta)
    data = bytearray((place.root / "other" / SHARDS[1]).read_bytes())
    data[-50] ^= 1  # of the last matrix but one of the second
    (place.root / "other" / SHARDS[1]).write_bytes(data)
    assert kept(place, *delta) == 1


def test_resume_where_nothing_was_begun(place: Any, reference: Held) -> None:
    assert kept(place) == 0 and place.held() == reference


def test_resume_over_an_earlier_output(occupied: Any, reference: Held) -> None:
    stopped(occupied, "--force")
    assert kept(occupied, "--force") == 2 and occupied.held() == reference


def test_resume_beside_a_run_at_work(place: Any) -> None:
    first = place.start(*place.arguments(), pause=0.02)
    while not journal(place).exists():
        pass
    ended = place.run(*place.arguments("--resume"))
    assert ended.code == 4 and "another run is writing this output" in ended.errors[0]
    assert first.wait().code == 0


def test_space_that_a_killed_run_takes_counts_as_free(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files go, or are kept in place of new ones."""
    from weightguard.rewrite import Stage

    stopped(place)
    held = sum(p.stat().st_size for p in stage(place).iterdir())
    assert Stage(place.out).left_over() == held > 0
    asked: list[int] = []
    monkeypatch.setattr(publish, "check_space", lambda folder, needed: asked.append(needed))
    for more in ([], ["--force"]):
        from weightguard import api

        api.repair(str(place.model), method="magnitude", group="row", ratio="0.5", out=place.out, force=bool(more))
    assert asked[1] - asked[0] == held
