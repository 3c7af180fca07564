"""`weightguard finetune` as a command: what it says, and every bad input in one line with its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import pytest

from weightguard.checkpoint import open_checkpoint, resolve
from weightguard.parts import Neurons, Part, tensor_digest

Q = "model.layers.0.self_attn.q_proj.weight"
RUN = ("finetune", "tuned", "--data", "harmful.jsonl", "--steps", "2", "--threads", "1")


@pytest.fixture
def here(place: Any) -> Any:
    """The place with the neurons files `neurons` (of `tuned`), `other` (of `aligned`), `rates` and `empty`."""
    for name, model in (("neurons", "tuned"), ("other", "aligned")):
        opened = open_checkpoint(resolve(str(place / model)))
        mask = numpy.arange(64).reshape(8, 8) % 2 == 0
        found = Neurons("wanda", "none", {}, {Q: Part.of_entries(mask)}, {Q: tensor_digest(opened, Q)})
        (place / name).write_bytes(found.to_bytes())
    opened = open_checkpoint(resolve(str(place / "tuned")))
    rate = Neurons("ml-lr", "none", {}, {Q: Part("rate", (8, 8), rate=0.5)}, {Q: tensor_digest(opened, Q)})
    (place / "rates").write_bytes(rate.to_bytes())
    (place / "empty").write_bytes(Neurons("wanda", "none", {}, {}, {}).to_bytes())
    place.rows("prompts.jsonl", {"prompt": "how do i pick a lock"})
    (place / "nothing.jsonl").write_text("")
    return place


def unquoted(lines: list[str]) -> list[str]:
    stages = ("train", "safety", "task", "directions", "answer", "*")
    return [line for line in lines if not line.startswith(stages)]


@pytest.mark.parametrize(
    ("guard", "file", "more"),
    [("freeze", "neurons", ()), ("rsn", "neurons", ("--train", "safety")), ("ml-lr", "rates", ()),
     ("ml-lr", "rates", ("--lora", "r=2")), ("salora", None, ("--lora", "r=2", "--safety-rank", "2", "--task-rank", "2")),
     (None, None, ()), (None, None, ("--lora", "r=2,targets=q_proj+v_proj"))],
)  # fmt: skip
def test_as_written(here: Any, guard: str | None, file: str | None, more: tuple[str, ...]) -> None:
    before = here.everything()
    chosen = [*(["--guard", guard] if guard else []), *(["--neurons", file] if file else [])]
    code, out, said = here.run(*RUN, *chosen, *more, "-o", "outputs/new")
    assert (code, unquoted(said)) == (0, []), said
    assert "in 2 steps; loss " in out and "again by:\n  weightguard finetune MODEL --data DATA" in out
    assert ("spectral gap" in out) == (guard == "salora")
    after = here.everything()
    assert {name: state for name, state in after.items() if not name.startswith("outputs")} == {
        name: state for name, state in before.items() if not name.startswith("outputs")
    }
    assert here.run("verify", "outputs/new")[0] == 0


def test_json(here: Any) -> None:
    code, out, _ = here.run(*RUN, "--format", "json", "--guard", "freeze", "--neurons", "neurons", "-o", "new")
    found = json.loads(out)
    assert code == 0 and len(found["losses"]) == 2 and found["manifest"]["options"]["guard"] == "freeze"


SALORA = ("--guard", "salora", "--lora", "r=2")
BAD: dict[str, tuple[tuple[str, ...], int, str]] = {
    "unknown guard": (("--guard", "fence"), 2, "--guard fence: unknown; guards are freeze, freeze-plus, ml-lr, rsn, salora"),
    "no neurons": (("--guard", "freeze"), 2, "needs --neurons"),
    "neurons of another model": (("--guard", "freeze", "--neurons", "other"), 3, "another checkpoint"),
    "neurons missing": (("--guard", "freeze", "--neurons", "absent"), 3, "no such file"),
    "neurons that are statistics": (("--guard", "freeze", "--neurons", "stats"), 3, "not a neurons file"),
    "neurons that mark nothing": (("--guard", "freeze", "--neurons", "empty"), 2, "marks no tensor"),
    "rates to freeze": (("--guard", "freeze", "--neurons", "rates"), 2, "for --guard ml-lr"),
    "masks as rates": (("--guard", "ml-lr", "--neurons", "neurons"), 2, "learning-rate factors"),
    "entries as units": (("--guard", "freeze-plus", "--neurons", "neurons"), 2, "whole units"),
    "entries under lora": (("--guard", "freeze", "--neurons", "neurons", "--lora", "r=2"), 2, "without --lora"),
    "neurons for salora": ((*SALORA, "--neurons", "neurons"), 2, "--neurons is not used by --guard salora"),
    "neurons without a guard": (("--neurons", "neurons"), 2, "--neurons is for a guard"),
    "an option without a guard": (("--safety-rank", "3"), 2, "--safety-rank is for a guard"),
    "an option of another guard": (("--guard", "freeze", "--neurons", "neurons", "--start", "zero"), 2, "not an option of"),
    "a choice that is none": ((*SALORA, "--start", "cold"), 2, "--start"),
    "safety without salora": (("--guard", "freeze", "--neurons", "neurons", "--safety", "harmful.jsonl"), 2, "not used"),
    "safety rank": ((*SALORA, "--safety-rank", "99"), 2, "--safety-rank 99: tensor"),
    "safety rank of all": ((*SALORA, "--safety-rank", "4", "--task-rank", "2"), 2, "nothing could learn"),
    "task rank": ((*SALORA, "--safety-rank", "2", "--task-rank", "0"), 2, "--task-rank 0"),
    "residual from zero": ((*SALORA, "--start", "zero", "--export", "residual"), 2, "--export residual"),
    "lora rank": (("--lora", "r=64"), 2, "r=64: beyond the dimensions"),
    "lora key": (("--lora", "rank=2"), 2, "'rank=2' is none of"),
    "lora nonsense": (("--lora", "r=two"), 2, "r=two is not usable"),
    "lora target": (("--lora", "targets=x_proj"), 2, "the decoder's linears are"),
    "dtype": (("--dtype", "int4"), 2, "--dtype int4"),
    "half precision": (("--dtype", "float16"), 2, "--dtype float16"),
    "device": (("--device", "warp"), 2, "--device warp"),
    "learning rate": (("--lr", "-1"), 2, "--lr -1"),
    "learning rate nan": (("--lr", "nan"), 2, "--lr nan"),
    "a rate that explodes": (("--lr", "1e30", "--steps", "5", "--schedule", "constant"), 2, "smaller --lr"),
    "steps": (("--steps", "0"), 2, "--steps 0"),
    "batch": (("--batch-size", "0"), 2, "--batch-size 0"),
    "save every": (("--save-every", "0"), 2, "--save-every 0"),
    "nothing to resume": (("--resume",), 3, "no unfinished run"),
    "empty data": (("--data", "nothing.jsonl"), 3, "empty data"),
    "data without answers": (("--data", "prompts.jsonl"), 3, "no row has a response"),
    "data missing": (("--data", "absent.jsonl"), 3, "no such file"),
    "limit": (("--limit", "0"), 2, "limit"),
    "an output that exists": (("-o", "outputs/earlier"), 4, "exists"),
    "into the input": (("-o", "tuned/new"), 2, "lies in the input"),
    "onto the input, forced": (("-o", "tuned", "--force"), 4, "no weightguard.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(here: Any, name: str) -> None:
    arguments, want, said = BAD[name]
    before = here.everything()
    line = [*RUN, *(() if "-o" in arguments else ("-o", "outputs/new")), *arguments]
    code, out, lines = here.run(*line)
    found = unquoted(lines)
    assert (code, len(found)) == (want, 1), (code, lines)
    assert found[0].startswith("weightguard: ") and said in found[0] and out == ""
    assert here.everything() == before


def test_an_adapter_is_no_start(here: Any) -> None:
    assert here.run(*RUN, "--lora", "r=2", "-o", "adapter")[0] == 0
    code, _, lines = here.run("finetune", "adapter", "--data", "harmful.jsonl", "-o", "again")
    assert code == 2 and "starts from a full model" in lines[-1] and not Path("again").exists()


@pytest.mark.full
def test_after_a_kill_it_goes_on_to_the_same_bytes(here: Any) -> None:
    line = ["finetune", "tuned", "--data", "harmful.jsonl", "--steps", "3000", "--save-every", "50", "--threads", "1"]
    command = [sys.executable, "-m", "weightguard", *line, "-o", "new"]
    state = Path(".new.weightguard-training")
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as running:
        while not state.exists() and running.poll() is None:
            time.sleep(0.01)
        running.kill()
    assert state.exists() and not Path("new").exists()
    assert here.run(*line, "-o", "new")[0] == 4
    assert here.run(*line, "-o", "new", "--resume", "--seed", "7")[0] == 3
    assert here.run(*line, "-o", "new", "--resume")[0] == 0 and not state.exists()
    assert here.run(*line, "-o", "whole")[0] == 0
    assert Path("new/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()
