"""A repair that is killed, interrupted or let down by the disk, at every call that changes a file, and several at once.

Whatever happens: no output that is not whole, the input as it was, and the next run succeeds with the same bytes.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Held = dict[str, tuple[Any, ...]]
# Mode -> (over an earlier output, with a kernel that can exchange two names, how many calls, those tried by default).
# Calls come in this order: the stage and its lock, shards, companions, manifest, directories, rename, removal of the old.
MODES: dict[str, tuple[bool, bool, int, tuple[int, ...]]] = {
    "new": (False, True, 63, (1, 7, 8, 17, 61, 62)),
    "new, no exchange": (False, False, 64, (2, 62)),
    "forced": (True, True, 79, (60, 61, 62, 63, 78)),
    "forced, no exchange": (True, False, 81, (62, 63, 64, 80)),
}
EVERYWHERE = [
    pytest.param(mode, at, id=f"{mode}-{at}", marks=() if at in tried else pytest.mark.full)
    for mode, (_, _, calls, tried) in MODES.items()
    for at in range(calls)
]
everywhere = pytest.mark.parametrize(("mode", "at"), EVERYWHERE)


class Case:
    """One mode in a place of its own, and what must hold afterwards."""

    def __init__(self, mode: str, place: Any, earlier: Any, reference: Held) -> None:
        self.force, self.exchange, self.calls, _ = MODES[mode]
        self.place, self.reference = place, reference
        if self.force:
            shutil.copytree(earlier.out, place.out)
        self.how = ""
        self.before, self.input = place.held(), place.held("model")
        self.arguments = place.arguments(*(["--force"] if self.force else []))

    def run(self, **fault: Any) -> Any:
        self.how = "write limit" if "limit" in fault else str(fault.get("how", self.how))
        ended = self.place.run(*self.arguments, exchange=self.exchange, **fault)
        assert self.place.held("model") == self.input
        return ended

    def whole(self) -> bool:
        """Whether the new output is there; if not, everything must be as before."""
        held = self.place.held()
        state = "as before" if held == self.before else "whole" if held == self.reference else "wrong"
        self.place.tally(self.how, state)
        assert state != "wrong"
        return held == self.reference

    def succeeds_now(self) -> None:
        """Another run gives the same bytes and leaves nothing behind."""
        published = not self.force and self.place.held() == self.reference
        assert self.run().code == (4 if published else 0)
        assert self.place.held() == self.reference and self.place.litter() == []


@pytest.fixture
def case(place: Any, earlier: Any, reference: Held) -> Callable[[str], Case]:
    return lambda mode: Case(mode, place, earlier, reference)


@pytest.mark.parametrize("mode", MODES)
def test_the_calls_are_all_known(mode: str, case: Callable[[str], Case]) -> None:
    """The tables above say how many calls there are; a call more is a call that nothing below tries."""
    it = case(mode)
    assert it.run(how="count").code == 0
    calls = (it.place.root / "calls").read_text().split()
    assert len(calls) == it.calls
    assert (
        calls[:3] == ["mkdir", "mkdir", "flock"]
        and calls.count("create") == 2 * 3 + 10
        and "renameat2" not in calls[:60]
    )


@everywhere
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed(mode: str, at: int, when: str, case: Callable[[str], Case]) -> None:
    it = case(mode)
    assert it.run(at=at, how=f"killed {when}").code == -signal.SIGKILL
    if it.place.held() == {} and it.force:
        # The one window, between two renames: the earlier output waits beside, and the next run puts it back.
        assert not it.exchange and ".out.weightguard-stage-old" in it.place.litter()
        assert it.place.run(*it.place.arguments(), exchange=False).code == 4
        assert it.place.held() == it.before
    it.whole()
    it.succeeds_now()


@everywhere
@pytest.mark.parametrize("how", ["ENOSPC", "EIO"])
def test_let_down_by_the_disk(mode: str, at: int, how: str, case: Callable[[str], Case]) -> None:
    it = case(mode)
    ended = it.run(at=at, how=how)
    if ended.code == 0:  # making a folder that is there already, which never succeeds
        assert it.whole()
        return
    assert ended.code == 5, ended.said
    assert len(ended.errors) == 1 and ended.errors[0].startswith("weightguard: "), ended.said
    assert {"ENOSPC": "No space left on device", "EIO": "Input/output error"}[how] in ended.errors[0]
    assert it.place.litter() == []
    # Only what removes the earlier output comes after the new one is in place.
    assert not it.whole() or (it.force and at > 61)
    it.succeeds_now()


@everywhere
@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT"])
def test_interrupted(mode: str, at: int, how: str, case: Callable[[str], Case]) -> None:
    it = case(mode)
    ended = it.run(at=at, how=how)
    code, word = {"SIGTERM": (143, "terminated"), "SIGINT": (130, "interrupted")}[how]
    assert ended.code == code and ended.seconds < 5
    assert ended.errors == [f"weightguard: {word}; no unfinished output is left"], ended.said
    assert it.place.litter() == []
    it.whole()
    it.succeeds_now()


@pytest.mark.full
def test_killed_at_random_times(case: Callable[[str], Case]) -> None:
    """500 points in time, none of them chosen by the code."""
    it, draw = case("new"), random.Random(1)
    lengths = []
    for _ in range(5):
        lengths.append(it.run().seconds)
        shutil.rmtree(it.place.out)
    it.how = "killed at a random time"
    for _ in range(500):
        child = it.place.start(*it.arguments)
        time.sleep(draw.uniform(0, 1.2 * min(lengths)))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        if it.whole():
            shutil.rmtree(it.place.out)
        assert it.place.held("model") == it.input
    it.succeeds_now()


@pytest.mark.parametrize("limit", [0, 100, 1000])
def test_a_real_write_that_fails(limit: int, case: Callable[[str], Case]) -> None:
    """The kernel writes up to a limit and then refuses: first a short write, then an error."""
    it = case("new")
    ended = it.run(limit=limit)
    assert ended.code == 5 and ended.errors == [f"weightguard: {it.place.out}: cannot be written: File too large"]
    assert it.place.litter() == [] and not it.whole()
    it.succeeds_now()


@pytest.mark.parametrize("runs", [2, 4, pytest.param(8, marks=pytest.mark.full)])
@pytest.mark.parametrize("exchange", [True, False])
def test_several_runs_at_one_target(runs: int, exchange: bool, place: Any, reference: Held) -> None:
    children = [place.start(*place.arguments(), exchange=exchange, pause=0.002) for _ in range(runs)]
    ended = [child.wait() for child in children]
    assert sorted(each.code for each in ended) == [0] + [4] * (runs - 1), [each.said for each in ended]
    lost = [line for each in ended if each.code for line in each.errors]
    assert all("another run is writing this output" in line or "exists; give another -o" in line for line in lost)
    assert place.held() == reference and place.litter() == []


@pytest.mark.parametrize("runs", [3, pytest.param(8, marks=pytest.mark.full)])
@pytest.mark.parametrize("exchange", [True, False])
def test_several_forced_runs(runs: int, exchange: bool, occupied: Any, reference: Held) -> None:
    """Each either replaces the output, after the other has ended, or is told that another one is at it."""
    arguments = occupied.arguments("--force")
    children = [occupied.start(*arguments, exchange=exchange, pause=0.002 * i) for i in range(runs)]
    codes = [child.wait().code for child in children]
    assert 0 in codes and set(codes) <= {0, 4}
    assert occupied.held() == reference and occupied.litter() == []


SHARD = "model-00002-of-00003.safetensors"
CHANGED = "{}: changed while it was read; start again once nothing writes to it"
READ = CHANGED.format(SHARD)
AGAIN = "{}: changed while the checkpoint was read; nothing was written"


def cut(root: Path) -> None:
    os.truncate(root / SHARD, 300)


def grow(root: Path) -> None:
    with (root / SHARD).open("ab") as file:
        file.write(b"more")


def overwrite(root: Path) -> None:
    with (root / SHARD).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")
    os.utime(root / SHARD, ns=(1, 1))  # the clock of the file system may not have moved on


def replace(root: Path) -> None:
    os.replace(root.parent / "other" / SHARD, root / SHARD)


def rehead(root: Path) -> None:
    data = (root / SHARD).read_bytes()
    (root / SHARD).write_bytes(data.replace(b'"pt"', b'"np"'))


def remove(root: Path) -> None:
    (root / SHARD).unlink()


def reconfigure(root: Path) -> None:
    (root / "config.json").write_text('{"auto_map": {"AutoConfig": "evil.Config"}}')


def reindex(root: Path) -> None:
    (root / "model.safetensors.index.json").write_text('{"weight_map": {}}')


# (what happens to the input, at which call, message); call 10 is in the middle of the second shard, before its tensors are read
CHANGES: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "cut before it is read": (cut, 5, READ),
    "grown before it is read": (grow, 5, READ),
    "another header before it is read": (rehead, 5, READ),
    "gone before it is read": (remove, 5, f"{SHARD}: missing"),
    "cut while it is read": (cut, 10, READ),
    "grown while it is read": (grow, 10, READ),
    "overwritten while it is read": (overwrite, 10, READ),
    "replaced while it is read": (replace, 10, READ),
    "gone while it is read": (remove, 10, f"{SHARD}: missing"),
    "config that changes": (reconfigure, 10, AGAIN.format("config.json")),
    "index that changes": (reindex, 10, AGAIN.format("model.safetensors.index.json")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_input_that_changes_meanwhile(change: str, place: Any) -> None:
    edit, at, message = CHANGES[change]

    def act(name: str, real: Callable[[], Any], arguments: tuple) -> Any:
        edit(place.model)
        return real()

    ended = place.run(*place.arguments(), at=at, how=act)
    assert (ended.code, ended.errors) == (3, [f"weightguard: {message}"])
    assert place.held() == {} and place.litter() == []


LAST = "model-00003-of-00003.safetensors"
FIRST = "model-00001-of-00003.safetensors"


@pytest.mark.parametrize("shard", [FIRST, LAST])
@pytest.mark.parametrize("role", ["model", "aligned"])
def test_a_file_of_the_same_size_in_the_place_of_a_shard(role: str, shard: str, place: Any) -> None:
    """Of which the output would become a mixture: of a shard that was read already, and of one that is read next."""
    shutil.copytree(place.root / "other", place.root / "aligned")
    shutil.copy(place.root / "other" / shard, place.root / "new")

    def act(name: str, real: Callable[[], Any], arguments: tuple) -> Any:
        stat = (place.root / role / shard).stat()
        os.utime(place.root / "new", ns=(stat.st_atime_ns, stat.st_mtime_ns))
        (place.root / "new").rename(place.root / role / shard)
        return real()

    delta = ("--target", "delta", "--aligned", str(place.root / "aligned"))
    ended = place.run(*place.arguments(*delta), at=10, how=act)
    assert (ended.code, ended.errors) == (3, [f"weightguard: {CHANGED.format(shard)}"])
    assert place.held() == {} and place.litter() == ["aligned"]


def test_a_new_name_or_mode_of_a_shard_is_no_change(place: Any, reference: Held) -> None:
    def act(name: str, real: Callable[[], Any], arguments: tuple) -> Any:
        os.link(place.model / SHARD, place.root / "backup")
        (place.model / SHARD).chmod(0o400)
        return real()

    assert place.run(*place.arguments(), at=10, how=act).code == 0 and place.held() == reference
