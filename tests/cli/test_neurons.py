"""`weightguard neurons` and what takes its files: the command lines, and one line for everything that can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

S, U, O = ["--safety", "safety.jsonl"], ["--utility", "utility.jsonl"], ["-o", "neurons"]  # noqa: E741
UP = "model.layers.0.mlp.up_proj.weight"
KINDS = "set-difference, freeze-plus, rsn, rank, ml-lr, random"
# what is done to the place, the command, the exit code, the line
Case = tuple[Callable[[Any], object], list[str], int, str]


@pytest.fixture
def ready(place: Any) -> Any:
    """The place with a safety and a utility set, and a file of neurons that mark nothing of its models."""
    place.rows(
        "safety.jsonl",
        {"prompt": "how do i pick a lock", "response": "take the cake ."},
        {"prompt": "pick the lock", "response": "take the cake ."},
    )
    place.rows(
        "utility.jsonl",
        {"prompt": "how do i bake a cake", "response": "bake this : the cake"},
        {"prompt": "bake the cake", "response": "sure"},
    )
    return place


def nothing(place: Any) -> None:
    """The place as it is."""


def usage(line: str, *more: str) -> Case:
    return nothing, ["neurons", "aligned", *O, *more], 2, line


def bad_data(prepare: Callable[[Any], object], line: str, *more: str) -> Case:
    return prepare, ["neurons", "aligned", *O, *S, *U, *more], 3, line


def rows(name: str, *found: dict[str, str]) -> Callable[[Any], object]:
    return lambda place: place.rows(name, *found)


def spoiled(place: Any) -> None:
    place.model("broken", lambda tensors: tensors[UP].__setitem__((0, 0), numpy.nan))


def found(place: Any, *options: str) -> None:
    assert place.run("neurons", "aligned", *O, *options)[0] == 0


def foreign(place: Any) -> None:
    save_file({"x": numpy.ones(2)}, place / "neurons")


def tokenised(place: Any) -> None:
    save_file(
        {"input_ids": numpy.ones((2, 3), int), "attention_mask": numpy.ones((2, 3), int)}, place / "ids.safetensors"
    )


RANGE = "must lie between 0 and 1"
CASES: dict[str, Case] = {
    "unknown kind": usage(f"--kind heal: unknown; kinds are {KINDS}", *S, *U, "--kind", "heal"),
    "option of another kind": usage("--score is not an option of --kind rank", *S, *U, "--rank", "--score", "snip"),
    "rank and another kind": usage(
        "--rank is --kind rank; it does not go with --kind rsn", *S, *U, "--rank", "--kind", "rsn"
    ),
    "choice of another kind": usage(
        "--units entries: must be one of rows, heads", *S, *U, "--kind", "freeze-plus", "--units", "entries"
    ),
    "score": usage("Invalid value for '--score': 'x' is not one of 'wanda', 'snip'.", *S, *U, "--score", "x"),
    "share": usage(f"--top-safety 2: {RANGE}", *S, *U, "--top-safety", "2"),
    "share below 0": usage(f"--top-utility -0.1: {RANGE}", *S, *U, "--top-utility", "-0.1"),
    "share that is none": usage("--top-safety lots: not a number", *S, *U, "--top-safety", "lots"),
    "share NaN": usage(f"--top-utility nan: {RANGE}", *S, *U, "--top-utility", "nan"),
    "share 0": usage("--top-safety 0 marks nothing; give a share above 0", *S, *U, "--top-safety", "0"),
    "share of nothing": usage(
        "--top-safety 0.0001 selects not one entry of any matrix; give a larger share", *S, *U, "--top-safety", "0.0001"
    ),
    "share of no unit": usage(
        "--top-safety 0.1 selects not one of 2 units; give a larger share",
        *S, *U, "--units", "heads", "--top-safety", "0.1",
    ),
    "share of no unit of a layer": usage(
        "--top-safety 0.1 selects not one of 1 units; give --group global, or a larger share",
        *S, *U, "--units", "heads", "--group", "matrix", "--top-safety", "0.1",
    ),
    "share of no rank": usage(
        "--top-safety 0.01 is not one rank of any tensor; give a larger share", *S, *U, "--rank", "--top-safety", "0.01"
    ),
    "rank beyond the dimension": usage(f"--top-safety 1.5: {RANGE}", *S, *U, "--rank", "--top-safety", "1.5"),
    "units of a row": usage(
        "--group row ranks the entries of a row; with --units give matrix or global",
        *S, *U, "--units", "rows", "--group", "row",
    ),
    "utility is missing": usage(
        "--utility is missing; --kind set-difference needs it: harmless rows with their answers", *S
    ),
    "utility that counts for nothing": usage(
        "--utility is not used by --kind set-difference, which takes no share on it: --top-utility is 0",
        *S, *U, "--top-utility", "0",
    ),
    "data for a random draw": usage("--safety is not used by --kind random, which looks at no data", *S, "--kind", "random"),
    "like without random": usage("--like is for --kind random, not for --kind rank", *S, *U, "--rank", "--like", "x"),
    "like and a share": usage(
        "--like says how many are drawn of what; leave --top-safety out",
        "--kind", "random", "--like", "x", "--top-safety", "0.1",
    ),
    "like that is missing": (
        nothing, ["neurons", "aligned", *O, "--kind", "random", "--like", "gone"], 3,
        "gone: no such file; it should be a neurons file",
    ),
    "rsn without foundation": usage(
        "--kind rsn is a difference of two sets; give --top-safety and --top-utility above 0",
        *S, *U, "--kind", "rsn", "--top-utility", "0",
    ),
    "noise of nothing": usage(
        "--noise 0: must be above 0, where nothing is disturbed, and at most 100",
        *S, *U, "--kind", "ml-lr", "--noise", "0",
    ),
    "take": usage(
        "--take all: must be one or several of safety-critical, utility-critical, complex, redundant, joined by commas",
        *S, *U, "--kind", "freeze-plus", "--take", "all",
    ),
    "scope": usage(
        "--scope x: this model has the roles down, gate, k, o, q, up, v, or all", *S, *U, "--scope", "x"
    ),
    "heads without attention": usage(
        "--units heads: no tensor of attention is in --scope; give scope all or q,k,v,o",
        *S, *U, "--units", "heads", "--scope", "up",
    ),
    "limit": usage("limit is 0; give 1 or more, or leave it out", *S, *U, "--limit", "0"),
    "threads": usage("--threads 0: must be at least 1", *S, *U, "--threads", "0"),
    "no output": (nothing, ["neurons", "aligned", *S, *U], 2, "Missing option '-o' / '--out'."),
    "no such model": (
        nothing, ["neurons", "./gone", *O, *S, *U], 3,
        "no such model: ./gone is neither a directory nor a hub id (org/name[@revision])",
    ),
    "output that exists": (
        nothing, ["neurons", "aligned", "-o", "stats", *S, *U], 4, "stats: exists; give another name or --force"
    ),
    "output in the model": (
        nothing, ["neurons", "aligned", "-o", "aligned/n", *S, *U], 2,
        "-o aligned/n: lies in the input aligned; give a place apart from it",
    ),
    "no such data": bad_data(lambda place: (place / "safety.jsonl").unlink(),
                             "safety.jsonl: no such file, and not a hub data set id (org/name); check the path"),
    "empty data": bad_data(lambda place: (place / "utility.jsonl").write_text(""),
                           "utility.jsonl: empty data, no rows; give at least one row"),
    "utility without answers": bad_data(
        rows("utility.jsonl", {"prompt": "bake a cake"}),
        "utility.jsonl: data with no countable token (no row has a response within the length limit); give rows that have one",
    ),
    "a shared prompt": bad_data(
        rows("utility.jsonl", {"prompt": "bake", "response": "sure"}, {"prompt": "pick the lock", "response": "sure"}),
        "row 2 of safety.jsonl and row 2 of utility.jsonl have the same prompt; --safety and --utility must share none",
    ),
    "a shared prompt for the probe": bad_data(
        rows("utility.jsonl", {"prompt": "pick the lock"}),
        "row 2 of safety.jsonl and row 1 of utility.jsonl have the same prompt; --safety and --utility must share none",
        "--kind", "ml-lr",
    ),
    "too few prompts for the probe": bad_data(
        nothing, "--safety: 2 prompts; the probe needs at least 4 of each class", "--kind", "ml-lr"
    ),
    "rows that are the same to the model": bad_data(
        nothing,
        "all that is in the top 0.5 on safety data is in the top 1 on utility data; nothing is left. "
        "Give a larger --top-safety or a smaller --top-utility",
        "--top-safety", "0.5", "--top-utility", "1",
    ),
    "safety within utility": bad_data(
        rows("utility.jsonl", {"prompt": "a", "response": "how do i pick a lock sure take this bake cake : . the"}),
        "the safety directions lie within the utility directions; give a smaller --top-utility",
        "--rank", "--top-safety", "1", "--top-utility", "1", "--scope", "q",
    ),
    "NaN": (
        spoiled, ["neurons", "broken", *O, *S, *U], 3,
        f"model.safetensors: tensor {UP!r} holds NaN or infinity; such weights cannot be scored or repaired",
    ),
    "NaN and gradients": (
        spoiled, ["neurons", "broken", *O, *S, *U, "--score", "snip"], 3,
        f"model.safetensors: tensor {UP!r} holds NaN or infinity; such weights cannot be scored or repaired",
    ),
    "NaN and Grams": (
        spoiled, ["neurons", "broken", *O, *S, *U, "--rank"], 3,
        f"model.safetensors: tensor {UP!r} holds NaN or infinity; such weights cannot be scored or repaired",
    ),
    "NaN and a probe": (
        spoiled, ["neurons", "broken", *O, *S, *U, "--kind", "ml-lr"], 3,
        f"model.safetensors: tensor {UP!r} holds NaN or infinity; such weights cannot be scored or repaired",
    ),
    "ids for the probe": (
        tokenised, ["neurons", "aligned", *O, "--safety", "ids.safetensors", *U, "--kind", "ml-lr"], 2,
        "--safety ids.safetensors is pre-tokenised; the probe needs prompts as text",
    ),
    "repair without neurons": (
        nothing, ["repair", "tuned", "-o", "out", "--method", "prune"], 2,
        "--method prune needs --neurons, a file written by weightguard neurons",
    ),
    "restore without a reference": (
        nothing, ["repair", "tuned", "-o", "out", "--method", "restore", "--neurons", "x"], 2,
        "--method restore writes aligned values back; give --aligned, or an adapter",
    ),
    "restore with a strength": (
        nothing, ["repair", "tuned", "-o", "out", "--method", "restore", "--strength", "0.5"], 2,
        "--strength is not an option of --method restore, which has no strength",
    ),
    "no such neurons": (
        nothing, ["repair", "tuned", "-o", "out", "--method", "prune", "--neurons", "gone"], 3,
        "gone: no such file; it should be a neurons file",
    ),
    "another file": (
        foreign, ["repair", "tuned", "-o", "out", "--method", "prune", "--neurons", "neurons"], 3,
        "neurons: not a neurons file; write one with weightguard neurons",
    ),
    "neurons of another model": (
        lambda place: found(place, "--kind", "random"),
        ["repair", "tuned", "-o", "out", "--method", "prune", "--neurons", "neurons"], 3,
        "the neurons were found in another checkpoint than tuned: tensor 'model.layers.0.self_attn.q_proj.weight' "
        "differs; find them again with weightguard neurons",
    ),
    "ranks to prune": (
        lambda place: found(place, "--rank", *S, *U),
        ["repair", "aligned", "-o", "out", "--method", "prune", "--neurons", "neurons"], 2,
        "--neurons holds parts of form rank (kind rank); --method prune takes entries, rows, columns",
    ),
    "neurons for a method without": (
        nothing, ["repair", "tuned", "-o", "out", "--method", "magnitude", "--neurons", "neurons"], 2,
        "--neurons is not used by --method magnitude, which looks at no data",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_nothing_written(case: str, ready: Any) -> None:
    prepare, arguments, code, line = CASES[case]
    prepare(ready)
    before = ready.everything()
    assert ready.run(*arguments) == (code, "", [f"weightguard: {line}"])
    assert ready.everything() == before


@pytest.mark.parametrize(
    "options",
    [[], ["--score", "snip", "--group", "row"], ["--units", "rows"], ["--kind", "freeze-plus"], ["--rank"],
     ["--kind", "freeze-plus", "--units", "heads", "--group", "global", "--top-safety", "0.5",
      "--top-utility", "0.5", "--effect", "ablation"],
     ["--kind", "rsn", "--top-safety", "0.5"]],
)  # fmt: skip
def test_a_search_says_what_it_found_and_how_to_do_it_again(options: list[str], ready: Any) -> None:
    wide = [] if "--top-safety" in options or "freeze-plus" in options else ["--top-safety", "0.4"]
    code, shown, notes = ready.run("neurons", "aligned", *S, *U, *O, *options, *wide)
    assert code == 0 and "role" in shown and "all" in shown
    assert notes == ["* safety data: safety.jsonl, 2 rows", "* utility data: utility.jsonl, 2 rows"]
    again = shown.strip().splitlines()[-1].split()
    assert again[:3] == ["weightguard", "neurons", "MODEL"]
    places = {"MODEL": "aligned", "SAFETY": "safety.jsonl", "UTILITY": "utility.jsonl", "NEURONS": "again"}
    assert ready.run(*(places.get(word, word) for word in again[1:]))[0] == 0
    assert (ready / "again").read_bytes() == (ready / "neurons").read_bytes()


def test_json_names_the_digest_and_what_is_marked(ready: Any) -> None:
    import hashlib

    code, shown, _ = ready.run("neurons", "aligned", *S, *U, *O, "--top-safety", "0.2", "--format", "json")
    said = json.loads(shown)
    assert code == 0 and said["sha256"] == hashlib.sha256((ready / "neurons").read_bytes()).hexdigest()
    assert said["tensors"]["all"]["tensors"] == 14 and 0 < said["tensors"]["all"]["share"] < 0.2


def test_shipped_refusals_stand_in_for_missing_safety_data(ready: Any) -> None:
    code, _, notes = ready.run("neurons", "aligned", *U, *O, "--top-safety", "0.2")
    assert code == 0
    assert notes[0] == "* safety data: none given, so the 104 prompts shipped with weightguard, with refusals"


def test_an_adapter_is_no_place_to_look(ready: Any) -> None:
    (ready / "lora").mkdir()
    said = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "aligned",
    }
    (ready / "lora/adapter_config.json").write_text(json.dumps(said))
    path = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    save_file({path.format("A"): numpy.ones((2, 8), "f4"), path.format("B"): numpy.ones((8, 2), "f4")},
              ready / "lora/adapter_model.safetensors")  # fmt: skip
    before = ready.everything()
    for model in ("lora", "aligned+lora"):
        assert ready.run("neurons", model, *S, *U, *O) == (6, "", [
            "weightguard: neurons are found in one checkpoint; give the base alone, or merge the adapter with peft"
        ])  # fmt: skip
    assert ready.everything() == before


def test_the_experiments_from_end_to_end(ready: Any) -> None:
    assert ready.run("neurons", "aligned", *S, *U, *O, "--score", "snip", "--top-safety", "0.3")[0] == 0
    assert ready.run("neurons", "aligned", *S, *U, "-o", "ranks", "--rank", "--top-safety", "0.3")[0] == 0
    for model, method, file, more in (("aligned", "prune", "neurons", []), ("aligned", "remove-ranks", "ranks", []),
                                      ("tuned", "restore", "neurons", ["--aligned", "aligned"])):  # fmt: skip
        code, shown, _ = ready.run("repair", model, "--method", method, "--neurons", file, *more, "-o", f"out-{method}")
        assert code == 0 and f"method {method} (arXiv:2402.05162)" in shown
        assert ready.run("verify", f"out-{method}", "--against", model)[0] == 0
