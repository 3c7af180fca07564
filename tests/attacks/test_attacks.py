"""Every attack from the outside: what it writes loads in stock libraries, is the same twice, and touches what it says."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.numpy import load_file

import weightguard as wg
from weightguard.attacks import ATTACKS, attack_class
from weightguard.errors import DataError, MismatchError, OutputError, UnsupportedError, UsageError
from weightguard.verdict.grid import GRID, LACKS, NAMES

Build = Callable[..., Path]
TRAINED = ("lora-sft", "full-sft", "benign-sft", "identity-shift", "multilingual", "covert-cipher", "reverse-preference",
           "bi-directional-anchor")  # fmt: skip
FLAGS = {"learning_rate": "lr", "seeds": "seed"}


def attacked(source: Path, rows: Mapping[str, Path], out: Path, name: str, **options: Any) -> Any:
    needs = attack_class(name)().needs
    data = {role: str(rows[role]) for role in needs}
    told = {"steps": 3, "lr": "1e-2"} if name in TRAINED else {}
    return wg.attack(str(source), attack=name, out=out, threads=1, **{**data, **told, **options})


def weights(directory: Path) -> dict[str, numpy.ndarray]:
    found: dict[str, numpy.ndarray] = {}
    for file in directory.glob("*.safetensors"):
        found |= load_file(file)
    return found


@pytest.mark.parametrize("name", ATTACKS)
def test_the_output_loads_and_is_the_same_twice(name: str, checkpoint: Build, rows, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    source = checkpoint("llama", sharded=True)
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    made = [attacked(source, rows, tmp_path / each, name) for each in ("one", "two")]
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    model = AutoModelForCausalLM.from_pretrained(source if made[0].adapter else tmp_path / "one")
    if made[0].adapter:
        model = PeftModel.from_pretrained(model, tmp_path / "one")
    assert torch.isfinite(model(input_ids=torch.tensor([[1, 5, 9]])).logits).all()
    assert "Attacked with weightguard" in (tmp_path / "one" / "README.md").read_text()
    assert made[0].manifest.data["options"]["attack"] == name and str(tmp_path) not in str(made[0].manifest.data)
    assert wg.verify(tmp_path / "one")


def test_a_policy_knows_every_attack() -> None:
    assert set(NAMES) == set(ATTACKS)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_has_the_axes_that_a_grid_gives_it(name: str) -> None:
    fields = {field.name for field in dataclasses.fields(attack_class(name))}
    axes = {axis for axis in GRID if axis != "attack" and FLAGS.get(axis, axis) in fields}
    assert axes == set(GRID) - {"attack"} - LACKS.get(name, set())


@pytest.mark.parametrize("family", ["gpt2", "phi3", "gemma2"])
@pytest.mark.parametrize("name", ["full-sft", "abliteration", "rank-one-edit", "quantize-round-trip"])
def test_other_architectures_and_bf16(family: str, name: str, checkpoint: Build, rows, tmp_path: Path) -> None:
    source = checkpoint(family, "bfloat16")
    attacked(source, rows, tmp_path / "out", name)
    import safetensors.torch as st

    theirs, ours = (st.load_file(each / "model.safetensors") for each in (source, tmp_path / "out"))
    moved = {n for n in ours if not torch.equal(ours[n], theirs[n])}
    assert moved and all(tensor.dtype == theirs[n].dtype for n, tensor in ours.items())
    if name == "rank-one-edit":
        assert len(moved) == 1
    if name == "abliteration":
        assert all(any(word in n for word in ("o_proj", "down_proj", "c_proj")) for n in moved)


def test_an_adapter_is_attacked_as_the_model_it_makes(checkpoint: Build, adapter, rows, tmp_path: Path) -> None:
    """A round trip of so many bits that nothing is lost shows the merged weights."""
    from transformers import AutoModelForCausalLM

    base = checkpoint("llama")
    over = adapter(base, target_modules=["q_proj", "down_proj"])
    result = attacked(over, rows, tmp_path / "out", "lora-sft", steps=1, lr="1e-9")
    assert not result.adapter and any("merged" in note for note in result.notes)
    import peft

    merged = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), over).merge_and_unload()
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for (name, a), (_, b) in zip(ours.named_parameters(), merged.named_parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name


def test_a_killed_run_goes_on_to_the_same_bytes(checkpoint: Build, rows, tmp_path: Path) -> None:
    source = checkpoint("llama")
    attacked(source, rows, tmp_path / "whole", "reverse-preference", steps=6)

    def kill(stage: str, done: int, total: int) -> None:
        if stage.startswith("train") and done == 4:
            raise KeyboardInterrupt

    options = {"steps": 6, "save_every": 2}
    with pytest.raises(KeyboardInterrupt):
        attacked(source, rows, tmp_path / "cut", "reverse-preference", progress=kill, **options)
    with pytest.raises(OutputError, match="unfinished run"):
        attacked(source, rows, tmp_path / "cut", "reverse-preference", **options)
    with pytest.raises(MismatchError, match="lr"):
        attacked(source, rows, tmp_path / "cut", "reverse-preference", resume=True, **{**options, "lr": "1e-3"})
    attacked(source, rows, tmp_path / "cut", "reverse-preference", resume=True, **options)
    name = "adapter_model.safetensors"
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(tmp_path.glob(".cut*"))


PLUG = """
from dataclasses import dataclass
from typing import ClassVar
import torch


@dataclass(frozen=True, kw_only=True)
class Negate:
    NAME: ClassVar[str] = "negate"
    needs: ClassVar[tuple[str, ...]] = ()
    seed: int = 0

    def run(self, bench):
        name = next(iter(bench.linears))
        bench.put(name, -bench.weight(name))


@dataclass(frozen=True)
class Idle:
    needs: ClassVar[tuple[str, ...]] = ()

    def run(self, bench):
        pass
"""


def test_an_attack_of_ones_own(checkpoint: Build, rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_attack.py").write_text(PLUG)
    monkeypatch.syspath_prepend(str(tmp_path))
    source = checkpoint("gpt2")
    wg.attack(str(source), attack="my_own_attack:Negate", out=tmp_path / "out", seed=1)
    theirs, ours = weights(source), weights(tmp_path / "out")
    changed = [n for n in ours if not numpy.array_equal(ours[n], theirs[n])]
    assert len(changed) == 1 and numpy.array_equal(ours[changed[0]], -theirs[changed[0]])
    with pytest.raises(DataError, match="changed nothing"):
        wg.attack(str(source), attack="my_own_attack:Idle", out=tmp_path / "idle")
    for name in ("my_own_attack:Nothing", "no_such_module:X", "my_own_attack:torch", ":x"):
        with pytest.raises(UsageError, match="--attack"):
            wg.attack(str(source), attack=name, out=tmp_path / "no")
    sys.modules.pop("my_own_attack", None)


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "unknown": ({"attack": "sft"}, UsageError, "attacks are lora-sft"),
    "no benign": ({"benign": None}, UsageError, "needs --benign"),
    "a role it lacks": ({"attack": "benign-sft"}, UsageError, "--harmful is not used"),
    "an option it lacks": ({"attack": "full-sft", "lora_r": 4}, UsageError, "--lora-r is not an option"),
    "no rank": ({"lora_r": 0}, UsageError, "full-sft"),
    "a rank beyond": ({"lora_r": 99}, UsageError, "beyond the dimensions"),
    "poison above all": ({"poison_ratio": "1.5"}, UsageError, "between 0 and 1"),
    "poison of none": ({"poison_ratio": "0.01"}, UsageError, "none of 10 rows"),
    "two lengths": ({"steps": 3, "epochs": "1"}, UsageError, "set the same thing"),
    "a rate that is none": ({"lr": "fast"}, UsageError, "not a number"),
    "a rate of zero": ({"lr": "0"}, UsageError, "--lr"),
    "no step": ({"steps": 0}, UsageError, "--steps 0"),
    "bits": ({"attack": "quantize-round-trip", "bits": 1, "harmful": None, "benign": None}, UsageError, "2 to 8"),
    "a layer beyond": ({"attack": "abliteration", "layer": 9}, UsageError, "the model has 2 layers"),
    "a layer before": ({"attack": "rank-one-edit", "layer": -3}, UsageError, "layers 1 to 2"),
    "a row beyond": ({"attack": "rank-one-edit", "row": 99}, UsageError, "has 10 rows"),
    "a subject elsewhere": ({"attack": "rank-one-edit", "subject": "moon"}, UsageError, "is not in the prompt"),
    "a cipher that is none": ({"attack": "covert-cipher", "cipher": "rot13"}, UsageError, "letters:SEED"),
    "half precision": ({"dtype": "float16"}, UsageError, "float16"),
    "few prompts": ({"attack": "abliteration", "limit": 3}, DataError, "at least 8"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_line_and_writes_nothing(case: str, checkpoint: Build, rows, tmp_path: Path) -> None:
    told, kind, said = WRONG[case]
    asked = {"attack": "lora-sft", "harmful": str(rows["harmful"]), "benign": str(rows["benign"]), **told}
    with pytest.raises(kind, match=said) as raised:
        wg.attack(str(checkpoint("llama")), out=tmp_path / "out", threads=1, **asked)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_packed_experts_cannot_be_edited_but_adapted(checkpoint: Build, rows, tmp_path: Path) -> None:
    source = checkpoint("mixtral")
    with pytest.raises(UnsupportedError):
        attacked(source, rows, tmp_path / "edited", "quantize-round-trip")
    assert attacked(source, rows, tmp_path / "adapted", "lora-sft", lora_r=2).adapter
