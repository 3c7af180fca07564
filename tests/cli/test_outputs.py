"""Where a result may go: never over what weightguard did not write, never into, over or around an input."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

M = ["repair", "tuned", "--method", "random", "--group", "row", "--ratio", "0.5"]
A = [*M, "--aligned", "aligned"]
EXISTS = "exists; give another -o or --force to replace it"
FOREIGN = "has no weightguard.json; --force replaces only what weightguard wrote"
APART = "-o {}: {} the input {}; give a place apart from it"


def nothing(place: Any) -> None:
    """The place as it is."""


def marked(*folders: str) -> Callable[[Any], None]:
    """Folders made to look like earlier outputs, so that --force would let them go."""
    return lambda place: [(place / folder / "weightguard.json").write_text("{}") for folder in folders] and None


def chained(place: Any) -> None:
    """An output that is the input of the next repair."""
    shutil.copytree(place / "outputs" / "earlier", place / "chain" / "one")


CASES: dict[str, tuple[Callable[[Any], object], list[str], int, str]] = {
    "an earlier output": (nothing, [*M, "-o", "outputs/earlier"], 4, f"outputs/earlier: {EXISTS}"),
    "an empty folder": (lambda p: (p / "out").mkdir(), [*M, "-o", "out"], 4, f"out: {EXISTS}"),
    "a file": (nothing, [*M, "-o", "harmful.jsonl"], 4, f"harmful.jsonl: {EXISTS}"),
    "a file, forced": (
        nothing,
        [*M, "-o", "harmful.jsonl", "--force"],
        4,
        "harmful.jsonl: is not a directory; --force replaces an earlier output only",
    ),
    "a link to nothing": (lambda p: (p / "out").symlink_to("gone"), [*M, "-o", "out"], 4, f"out: {EXISTS}"),
    "a link, forced": (
        lambda p: (p / "out").symlink_to("outputs/earlier"),
        [*M, "-o", "out", "--force"],
        4,
        "out: is not a directory; --force replaces an earlier output only",
    ),
    "a folder of others, forced": (nothing, [*M, "-o", "outputs", "--force"], 4, f"outputs: {FOREIGN}"),
    "here": (nothing, [*M, "-o", "."], 4, f".: {EXISTS}"),
    "here, forced": (nothing, [*M, "-o", ".", "--force"], 4, f".: {FOREIGN}"),
    "the root": (nothing, [*M, "-o", "/"], 4, f"/: {EXISTS}"),
    "the current directory": (nothing, [*M, "-o", "."], 4, f".: {EXISTS}"),
    "the input": (nothing, [*M, "-o", "tuned"], 4, f"tuned: {EXISTS}"),
    "the input, forced": (nothing, [*M, "-o", "tuned", "--force"], 4, f"tuned: {FOREIGN}"),
    "an input that was an output, forced": (
        marked("tuned"),
        [*M, "-o", "tuned/", "--force"],
        2,
        APART.format("tuned", "is", "tuned"),
    ),
    "the input by another way, forced": (
        marked("tuned"),
        [*M, "-o", "outputs/../tuned", "--force"],
        2,
        APART.format("outputs/../tuned", "is", "tuned"),
    ),
    "the aligned model, forced": (
        marked("aligned"),
        [*A, "-o", "aligned", "--force"],
        2,
        APART.format("aligned", "is", "aligned"),
    ),
    "a new folder in the input": (nothing, [*M, "-o", "tuned/out"], 2, APART.format("tuned/out", "lies in", "tuned")),
    "a deep folder in the aligned model": (
        nothing,
        [*A, "-o", "aligned/a/b"],
        2,
        APART.format("aligned/a/b", "lies in", "aligned"),
    ),
    "a folder in the input over a link": (
        lambda p: (p / "short").symlink_to("tuned"),
        [*M, "-o", "short/out"],
        2,
        APART.format("short/out", "lies in", "tuned"),
    ),
    "a folder that holds the input, forced": (
        lambda p: (chained(p), (p / "chain" / "weightguard.json").write_text("{}")),
        ["repair", "chain/one", *M[2:], "-o", "chain", "--force"],
        2,
        APART.format("chain", "holds", "chain/one"),
    ),
    "below a file": (
        nothing,
        [*M, "-o", "harmful.jsonl/out"],
        5,
        "harmful.jsonl/out: cannot be written, harmful.jsonl is not a directory; give another name",
    ),
    "below a device": (
        nothing,
        [*M, "-o", "/dev/null/a/out"],
        5,
        "/dev/null/a/out: cannot be written, null is not a directory; give another name",
    ),
    "where nothing can be made": (
        nothing,
        [*M, "-o", "/proc/out"],
        5,
        "/proc/out: cannot be written: No such file or directory",
    ),
    "a name that is too long": (
        nothing,
        [*M, "-o", "x" * 256],
        5,
        f"{'x' * 256}: cannot be written: File name too long",
    ),
    "statistics under a name that is too long": (
        nothing,
        ["stats", "tuned", "--data", "harmful.jsonl", "-o", "x" * 256],
        5,
        f"{'x' * 256}: cannot be written: File name too long",
    ),
    "no name at all": (nothing, [*M, "-o", ""], 2, "-o: the output path is empty"),
    "statistics under no name": (
        nothing,
        ["stats", "tuned", "--data", "harmful.jsonl", "-o", ""],
        2,
        "-o: the output path is empty",
    ),
    "a plan that exists": (
        nothing,
        [*M, "-o", "out", "--save-plan", "stats"],
        4,
        "stats: exists; give another name or --force",
    ),
    "a plan that is a folder": (
        nothing,
        [*M, "--dry-run", "--save-plan", "tuned", "--force"],
        4,
        "tuned: exists; give another name",
    ),
    "statistics that exist": (
        nothing,
        ["stats", "tuned", "--data", "harmful.jsonl", "-o", "stats"],
        4,
        "stats: exists; give another name or --force",
    ),
    "statistics over a file of the model, forced": (
        nothing,
        ["stats", "tuned", "--data", "harmful.jsonl", "-o", "tuned/config.json", "--force"],
        2,
        APART.format("tuned/config.json", "lies in", "tuned"),
    ),
    "a plan over a file of the model, forced": (
        nothing,
        [*M, "--dry-run", "--save-plan", "tuned/model.safetensors", "--force"],
        2,
        APART.format("tuned/model.safetensors", "lies in", "tuned").replace("-o", "--save-plan"),
    ),
    "statistics below a file": (
        nothing,
        ["stats", "tuned", "--data", "harmful.jsonl", "-o", "stats/x"],
        5,
        "stats/x: cannot be written, stats is not a directory; give another name",
    ),
    "a replay over a folder": (
        nothing,
        ["apply", "plan", "tuned", "-o", "outputs", "--force"],
        4,
        f"outputs: {FOREIGN}",
    ),
    "a replay over its input": (
        marked("tuned"),
        ["apply", "plan", "tuned", "-o", "tuned", "--force"],
        2,
        APART.format("tuned", "is", "tuned"),
    ),
    "a demo over a folder": (nothing, ["demo", "-o", "outputs", "--force"], 4, f"PLACE/outputs: {FOREIGN}"),
    "a demo over the root": (nothing, ["demo", "-o", "/"], 4, f"/: {EXISTS}"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused(case: str, place: Any) -> None:
    prepare, arguments, code, line = CASES[case]
    place.plan()
    prepare(place)
    before = place.everything()
    found = place.run(*arguments)
    assert found == (code, "", [f"weightguard: {line.replace('PLACE', str(place.root))}"])
    assert place.everything() == before


def test_parents_are_made(place: Any) -> None:
    assert place.run(*M, "-o", "a/b/c")[0] == 0
    assert place.run("verify", "a/b/c", "--against", "tuned")[0] == 0
    assert sorted(os.listdir("a/b")) == ["c"]


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "x" * 101])
def test_the_longest_names(name: str, place: Any) -> None:
    for _ in range(2):
        assert place.run(*M, "-o", name, "--force")[0] == 0
        assert place.run("stats", "tuned", "--data", "harmful.jsonl", "-o", f"s{name[1:]}", "--force")[0] == 0
    assert {entry for entry in os.listdir() if entry.startswith(".")} == set()
    assert place.run("verify", name, "--against", "tuned")[0] == 0


def test_an_earlier_output_is_replaced(place: Any) -> None:
    before = json.loads((place / "outputs/earlier/weightguard.json").read_bytes())
    assert place.run(*M, "-o", "outputs/earlier", "--force")[0] == 0
    after = json.loads((place / "outputs/earlier/weightguard.json").read_bytes())
    assert (before["method"], after["method"]) == ("magnitude", "random")
    assert os.listdir("outputs") == ["earlier"]


def test_beside_the_input_with_its_name_in_front(place: Any) -> None:
    assert place.run(*M, "-o", "tuned-repaired")[0] == 0


def test_an_output_is_repaired_on_and_on(place: Any) -> None:
    assert place.run("repair", "outputs/earlier", *M[2:], "-o", "outputs/again")[0] == 0
    assert place.run("verify", "outputs/again", "--against", "outputs/earlier")[0] == 0


def test_dry_run_writes_nothing(place: Any) -> None:
    before = place.everything()
    code, shown, _ = place.run(*M, "-o", "outputs/earlier", "--dry-run")
    assert code == 0 and "dry run, nothing was written" in shown
    assert place.everything() == before


def test_two_runs_give_the_same_bytes(place: Any) -> None:
    for name in ("one", "deep/er/two"):
        assert place.run(*A, "-o", name)[0] == 0
    one, two = ({p.name: p.read_bytes() for p in Path(n).iterdir()} for n in ("one", "deep/er/two"))
    assert one == two


def test_statistics_are_replaced_when_forced(place: Any) -> None:
    before = (place / "stats").read_bytes()
    (place / "stats").write_bytes(b"")
    assert place.run("stats", "tuned", "--data", "harmful.jsonl", "-o", "stats", "--force")[0] == 0
    assert (place / "stats").read_bytes() == before and not list(place.root.glob(".*"))


JSON: dict[str, list[str]] = {
    "inspect": ["inspect", "tuned", "--tensors"],
    "inspect headers": ["inspect", "tuned", "--no-digests"],
    "stats": ["stats", "tuned", "--data", "harmful.jsonl", "-o", "s"],
    "repair": [*A, "-o", "out"],
    "repair with data": ["repair", "tuned", "--aligned", "aligned", "--harmful", "harmful.jsonl", "-o", "out"],
    "dry run": [*A, "--dry-run"],
    "apply": ["apply", "plan", "tuned", "-o", "out"],
    "verify": ["verify", "outputs/earlier"],
}


@pytest.mark.parametrize("case", JSON)
def test_json(case: str, place: Any) -> None:
    """stdout is one JSON value and nothing else; progress and notes go to stderr."""
    place.plan()
    code, shown, _ = place.run(*JSON[case], "--format", "json")
    assert code == 0 and isinstance(json.loads(shown), dict)


@pytest.mark.parametrize("case", JSON)
def test_human(case: str, place: Any) -> None:
    place.plan()
    code, shown, _ = place.run(*JSON[case])
    assert code == 0 and shown.endswith("\n") and "\x1b" not in shown
