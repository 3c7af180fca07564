"""Verification: an output as it was written passes, and one byte, one file, one claim that differs is named."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import load_file, save_file

import weightguard as wg
from weightguard.checkpoint import strict_json
from weightguard.cli.main import main
from weightguard.errors import CheckpointError, InputError, MismatchError, UsageError

SHARD, UP = "model-00002-of-00003.safetensors", "model.layers.0.mlp.up_proj.weight"
FILES = [
    "model-00001-of-00003.safetensors", SHARD, "model.safetensors.index.json", "config.json", "tokenizer.json",
    "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "LICENSE", "README.md", "sub/notes.txt",
    "weightguard.json",
]  # fmt: skip


@pytest.fixture(scope="session")
def repaired(tmp_path_factory: pytest.TempPathFactory, earlier: Any) -> Path:
    return earlier.out


@pytest.fixture
def out(place: Any, earlier: Any) -> Path:
    """An output of `model`, made by another run in another place: nothing in it depends on where."""
    shutil.copytree(earlier.out, place.out)
    return place.out


def failure(out: Path, against: Path | None = None) -> str:
    """The message of a verification that must fail with exit code 3."""
    with pytest.raises(InputError) as error:
        wg.verify(out, against=None if against is None else str(against))
    assert error.value.exit_code == 3 and "\n" not in str(error.value)
    return str(error.value)


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def test_passes(out: Path, place: Any) -> None:
    found = wg.verify(out, against=str(place.model)).verified
    assert (found.files, found.tensors, found.edited) == (len(FILES), 20, 14)
    assert found.untouched_identical == 6 and found.changed_recounted == sum(
        e["changed"] for e in manifest(out)["edits"].values()
    )


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "weightguard.json").read_bytes())


@pytest.mark.parametrize("where", ["first", "middle", "last"])
@pytest.mark.parametrize("name", FILES)
def test_one_bit(name: str, where: str, out: Path) -> None:
    size = (out / name).stat().st_size
    flip(out / name, {"first": 0, "middle": size // 2, "last": size - 1}[where])
    assert name in failure(out)


def test_one_bit_of_a_tensor_names_the_tensor(out: Path) -> None:
    flip(out / SHARD, -1)
    assert failure(out) == (
        f"{SHARD}: tensor 'model.layers.0.self_attn.v_proj.weight' is not what weightguard.json says; its bytes were changed"
    )


@pytest.mark.parametrize("count", [60, pytest.param(5000, marks=pytest.mark.full)])
def test_one_bit_anywhere(count: int, out: Path, repaired: Path) -> None:
    draw = random.Random(count)
    for _ in range(count):
        name = draw.choice(FILES)
        at, bit = draw.randrange((out / name).stat().st_size), draw.randrange(8)
        flip(out / name, at, bit)
        assert name in failure(out), (name, at, bit)
        flip(out / name, at, bit)
    assert wg.verify(out)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_gone(name: str, out: Path) -> None:
    (out / name).unlink()
    said = failure(out)
    assert name in said or (name.endswith("index.json") and "no model.safetensors and no" in said)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short(name: str, out: Path) -> None:
    (out / name).write_bytes((out / name).read_bytes()[:-1])
    assert name in failure(out)


@pytest.mark.parametrize("name", FILES)
def test_a_link_out_with_the_same_content(name: str, out: Path, tmp_path: Path) -> None:
    (out / name).rename(tmp_path / "elsewhere")
    (out / name).symlink_to(tmp_path / "elsewhere")
    assert failure(out).startswith(f"{name}: a link out of the checkpoint, to ")


ADDED = [
    "extra.safetensors", "pytorch_model.bin", "model.gguf", "consolidated.00.pth", "modeling_evil.py", "added_tokens.json",
    "chat_template.json", "sub/another.txt", "new/deep/file.txt", "original/", "adapter_model.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("name", ADDED)
def test_a_file_that_was_added(name: str, out: Path) -> None:
    path = out / name
    path.mkdir() if name.endswith("/") else path.parent.mkdir(parents=True, exist_ok=True)
    if not name.endswith("/"):
        path.write_bytes(b"x")
    assert failure(out) == f"{name}: not in weightguard.json; it was added after the repair"


def test_hidden_files_may_be_added(out: Path) -> None:
    """git and the hub put theirs beside."""
    (out / ".gitattributes").write_text("x")
    (out / ".cache").mkdir()
    assert wg.verify(out)


def test_a_second_layout(out: Path) -> None:
    (out / "model.safetensors").write_bytes(b"x")
    assert "two layouts at once" in failure(out)


def test_what_is_no_output(place: Any) -> None:
    assert failure(place.model) == f"{place.model}: no weightguard.json; this was not written by weightguard"


def test_against_another_model(out: Path, place: Any) -> None:
    """Same names and shapes, other numbers."""
    assert failure(out, place.root / "other").startswith(
        "tensor 'model.embed_tokens.weight': listed as untouched, but differs"
    )


def test_against_itself(out: Path) -> None:
    assert failure(out, out).endswith(f"of {out} is not the one this output was made from")


def test_against_a_model_of_other_shapes(out: Path, place: Any) -> None:
    path = place.model / SHARD
    tensors = load_file(path)
    tensors[UP] = tensors[UP][:3]
    save_file(tensors, path, metadata={"format": "pt"})
    assert failure(out, place.model).startswith(f"{SHARD}: tensor {UP!r} is [3, 4], config.json gives it 6 outputs")


def test_against_a_model_with_one_other_entry(out: Path, place: Any) -> None:
    flip(place.model / SHARD, -1)
    assert failure(out, place.model).startswith("tensor 'model.layers.0.")


# Claims that were changed by someone who then made every digest right again: only the input can tell.


def reseal(out: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = manifest(out)
    del data["digest"]
    change(data)
    data["digest"] = hashlib.sha256(strict_json.dump(data)).hexdigest()
    (out / "weightguard.json").write_bytes(strict_json.dump(data))


def rewrite(out: Path, change: Callable[[numpy.ndarray], object], name: str = UP) -> None:
    """Change one tensor of the output, and all its digests."""
    tensors = load_file(out / SHARD)
    before = (out / SHARD).read_bytes()
    old = tensors[name].tobytes()
    change(tensors[name])
    (out / SHARD).write_bytes(before.replace(old, tensors[name].tobytes()))
    digest = hashlib.sha256(tensors[name].tobytes()).hexdigest()

    def claim(data: dict[str, Any]) -> None:
        data["outputs"]["tensors"][name] = digest
        data["outputs"]["files"][SHARD] = hashlib.sha256((out / SHARD).read_bytes()).hexdigest()
        if name in data["edits"]:
            data["edits"][name]["sha256"] = digest

    reseal(out, claim)


def test_resealing_alone_passes(out: Path, place: Any) -> None:
    reseal(out, lambda data: None)
    assert wg.verify(out, against=str(place.model))


def test_an_entry_that_was_put_back(out: Path, place: Any) -> None:
    first = tuple(numpy.argwhere(load_file(out / SHARD)[UP] == 0)[0])
    value = load_file(place.model / SHARD)[UP][first]
    rewrite(out, lambda array: array.__setitem__(first, value))
    changed = manifest(out)["edits"][UP]["changed"]
    assert wg.verify(out)
    assert failure(out, place.model) == (
        f"tensor {UP!r}: {changed - 1} entries differ from the input, weightguard.json says {changed}"
    )


def test_an_entry_that_became_what_no_repair_makes_of_it(out: Path, place: Any) -> None:
    rewrite(out, lambda array: array.__setitem__(tuple(numpy.argwhere(array == 0)[0]), 7.0))
    assert failure(out, place.model) == f"tensor {UP!r}: an entry changed to a value that its plan cannot give"


def test_an_untouched_tensor_that_was_changed(out: Path, place: Any) -> None:
    name = "model.layers.0.input_layernorm.weight"
    rewrite(out, lambda array: array.__setitem__(0, 7.0), name)
    assert wg.verify(out)
    assert failure(out, place.model) == f"tensor {name!r}: listed as untouched, but differs from {place.model}"


def test_an_edit_that_is_kept_quiet(out: Path, place: Any) -> None:
    reseal(out, lambda data: data["edits"].pop(UP))
    assert failure(out, place.model) == f"tensor {UP!r}: listed as untouched, but differs from {place.model}"


@pytest.mark.parametrize("value", [numpy.nan, numpy.inf])
def test_what_is_not_finite(value: float, out: Path) -> None:
    rewrite(out, lambda array: array.__setitem__((0, 0), value))
    assert failure(out) == f"{SHARD}: tensor {UP!r} holds NaN or infinity"


FORMS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another format": (lambda d: d.update(format=2), "not a manifest this version reads (format 1)"),
    "no method": (lambda d: d.pop("method"), "lacks method"),
    "no target": (lambda d: d.pop("target"), "lacks target"),
    "no outputs": (lambda d: d.pop("outputs"), "lacks outputs"),
    "outputs that are a list": (
        lambda d: d.update(outputs=[]),
        "not the digests and edits of a repair; write the output again",
    ),
    "no tensors": (
        lambda d: d["outputs"].pop("tensors"),
        "not the digests and edits of a repair; write the output again",
    ),
    "digests that are numbers": (
        lambda d: d["outputs"]["files"].update(LICENSE=7),
        "not the digests and edits of a repair; write the output again",
    ),
    "no input": (lambda d: d.update(inputs={}), "not the digests and edits of a repair; write the output again"),
    "an input of text": (
        lambda d: d["inputs"].update(model="x"),
        "not the digests and edits of a repair; write the output again",
    ),
    "edits that are a list": (
        lambda d: d.update(edits=[]),
        "not the digests and edits of a repair; write the output again",
    ),
    "an edit of text": (
        lambda d: d["edits"].update({UP: "x"}),
        "not the digests and edits of a repair; write the output again",
    ),
    "an edit of no tensor": (
        lambda d: d["edits"].update(ghost={"changed": 1}),
        "contradicts itself about the edited tensor 'ghost'",
    ),
    "an edit without a count": (
        lambda d: d["edits"][UP].pop("changed"),
        f"contradicts itself about the edited tensor {UP!r}",
    ),
    "an edit with another digest": (
        lambda d: d["edits"][UP].update(sha256="0"),
        f"contradicts itself about the edited tensor {UP!r}",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_manifest_of_another_form(form: str, out: Path) -> None:
    change, message = FORMS[form]
    reseal(out, change)
    assert failure(out) == f"weightguard.json: {message}"


@pytest.mark.parametrize("name", ["../model/config.json", "/etc/hostname", "sub/../../model/config.json"])
def test_a_manifest_that_leads_out(name: str, out: Path) -> None:
    reseal(out, lambda data: data["outputs"]["files"].update({name: "0"}))
    assert "outside of" in failure(out)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 10_000])
def test_a_manifest_that_is_none(content: bytes, out: Path) -> None:
    (out / "weightguard.json").write_bytes(content)
    assert failure(out).startswith("weightguard.json: ")


def adapter(root: Path, seed: int) -> Path:
    """LoRA over the first layer's up and down projections."""
    draw = numpy.random.default_rng(seed)
    root.mkdir()
    tensors = {}
    for module, shape in (("up_proj", (6, 4)), ("down_proj", (4, 6))):
        prefix = f"base_model.model.model.layers.0.mlp.{module}"
        tensors[f"{prefix}.lora_A.weight"] = draw.standard_normal((2, shape[1])).astype("f4")
        tensors[f"{prefix}.lora_B.weight"] = draw.standard_normal((shape[0], 2)).astype("f4")
    save_file(tensors, root / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj", "down_proj"]}
    (root / "adapter_config.json").write_text(json.dumps(config))
    return root


def test_what_was_made_from_an_adapter(place: Any, tmp_path: Path) -> None:
    mine, other = adapter(tmp_path / "adapter", 1), adapter(tmp_path / "another", 2)
    wg.repair(f"{place.model}+{mine}", method="magnitude", ratio=0.5, out=place.out)
    assert wg.verify(place.out, against=f"{place.model}+{mine}").verified.edited == 2
    with pytest.raises(MismatchError, match=rf"^{other} is not the adapter this output was made from$"):
        wg.verify(place.out, against=f"{place.model}+{other}")
    with pytest.raises(UsageError, match="was made from an adapter; give ADAPTER or MODEL"):
        wg.verify(place.out, against=str(place.model))


def test_command_line(out: Path, place: Any, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["verify", str(out), "--against", str(place.model)]
    assert main([*arguments, "--format", "json"]) == 0
    assert json.loads(capfd.readouterr().out)["ok"] is True
    assert main(arguments) == 0
    assert capfd.readouterr().out.endswith("verified\n")
    flip(out / "config.json", 5)
    assert main([*arguments, "--format", "json"]) == 3
    said = capfd.readouterr()
    assert said.out == "" and said.err.startswith("weightguard: config.json: ") and said.err.count("\n") == 1


def test_damage_is_a_checkpoint_error(out: Path) -> None:
    flip(out / "LICENSE", 0)
    with pytest.raises(
        CheckpointError, match=r"^LICENSE: its sha256 is not the one in weightguard\.json; the file was changed"
    ):
        wg.verify(out)
