"""The files beside the weights: kept to the byte, cleaned of what names code, or left behind, and each time said."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import weightguard as wg
from weightguard.errors import CheckpointError

INDEX = "model.safetensors.index.json"
Repair = Callable[[], Mapping[str, Any]]


@pytest.fixture
def repair(place: Any) -> Repair:
    """A function that repairs `model` into `out` and returns the manifest."""

    def run() -> Mapping[str, Any]:
        result = wg.repair(str(place.model), method="magnitude", group="row", ratio=0.5, target="weight", out=place.out)
        assert result.manifest is not None
        return result.manifest.data

    return run


def refusal(place: Any, repair: Repair) -> str:
    with pytest.raises(CheckpointError) as error:
        repair()
    assert not place.out.exists() and place.litter() == []
    return str(error.value)


def test_kept_to_the_byte(place: Any, repair: Repair) -> None:
    data = repair()
    written = {p.relative_to(place.out).as_posix(): p.read_bytes() for p in place.out.rglob("*") if p.is_file()}
    given = {p.relative_to(place.model).as_posix(): p.read_bytes() for p in place.model.rglob("*") if p.is_file()}
    assert written.keys() == given.keys() | {"weightguard.json"}
    same = {name for name in given if written[name] == given[name]}
    assert given.keys() - same == {"README.md", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"}
    assert data["notes"] == [] and set(data["outputs"]["files"]) == written.keys() - {"weightguard.json"}


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_matrices_of_zeros_are_left_so_and_said(zero: float, place: Any, repair: Repair) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    file = next(path for path in place.model.glob("*.safetensors") if name in load_file(path))
    tensors = load_file(file)
    save_file({**tensors, name: torch.full_like(tensors[name], zero)}, file, {"format": "pt"})
    assert repair()["notes"] == [f"1 tensors to be edited hold only zeros and were left so (first: {name})"]


CODE: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "auto_map in the config": (
        "config.json",
        {"auto_map": {"AutoModelForCausalLM": "evil.Model"}},
        {},
        "config.json: auto_map can name code and was removed",
    ),
    "all of them, and deep down": (
        "config.json",
        {"sub_config": {"auto_map": 1, "x": [{"trust_remote_code": True, "y": 2}]}, "custom_pipelines": {}},
        {"sub_config": {"x": [{"y": 2}]}},
        "config.json: auto_map, custom_pipelines, trust_remote_code can name code and was removed",
    ),
    "auto_map of the tokenizer": (
        "tokenizer_config.json",
        {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "größe": "模型"},
        {"größe": "模型"},
        "tokenizer_config.json: auto_map can name code and was removed",
    ),
    "auto_map of a processor": (
        "preprocessor_config.json",
        {"auto_map": {"AutoProcessor": "evil.Processor"}},
        {},
        "preprocessor_config.json: auto_map can name code and was removed",
    ),
    "generation by remote code": (
        "generation_config.json",
        {"trust_remote_code": True, "top_k": 5},
        {"top_k": 5},
        "generation_config.json: trust_remote_code can name code and was removed",
    ),
    "a kernel of the hub, in all its names": (
        "config.json",
        {
            "_attn_implementation_internal": "sdpa",
            "_experts_implementation_internal": "evil/kernel",
            "attn_implementation": "evil/kernel@main:evil",
            "sub_config": {"_attn_implementation": {"": "evil/kernel"}, "experts_implementation": "paged|evil/kernel"},
            "kernel_config": {"RMSNorm": "evil/kernel:evil"},
        },
        {"sub_config": {}},
        "config.json: _attn_implementation, _attn_implementation_internal, _experts_implementation_internal, "
        "attn_implementation, experts_implementation, kernel_config can name code and was removed",
    ),
    "a library that peft is to import": (
        "sub/generation_config.json",
        {
            "auto_mapping": {"base_model_class": "Model", "parent_library": "evil"},
            "megatron_core": "evil.core",
            "custom_generate": "evil/repo",
        },
        {},
        "sub/generation_config.json: auto_mapping, custom_generate, megatron_core can name code and was removed",
    ),
    "a config in a folder": (
        "sub/config.json",
        {"auto_map": {}},
        {},
        "sub/config.json: auto_map can name code and was removed",
    ),
}


@pytest.mark.parametrize("case", CODE)
def test_what_names_code_is_removed_and_said(case: str, place: Any, repair: Repair) -> None:
    name, added, left, note = CODE[case]
    path = place.model / name
    given = json.loads(path.read_bytes()) if path.exists() else {}
    path.write_text(json.dumps({**given, **added}, ensure_ascii=False))
    data = repair()
    assert json.loads((place.out / name).read_bytes()) == {**given, **left}
    assert data["notes"] == [note] and f"- {note}\n" in (place.out / "README.md").read_text()
    assert wg.verify(place.out, against=str(place.model))


def test_choices_that_are_the_librarys_own_are_kept(place: Any, repair: Repair) -> None:
    mapping = {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama.modeling_llama"}
    own = {"_attn_implementation": "sdpa", "attn_implementation": None, "experts_implementation": "paged|eager",
           "use_kernels": False, "auto_mapping": mapping, "megatron_core": "megatron.core"}  # fmt: skip
    (place.model / "generation_config.json").write_text(json.dumps(own))
    assert repair()["notes"] == []
    assert json.loads((place.out / "generation_config.json").read_bytes()) == own


LEFT = [
    f"weights{suffix}"
    for suffix in (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".npz", ".onnx", ".pkl")
]
LEFT += [
    "consolidated.00.pth",
    "consolidated.safetensors",
    "PYTORCH_MODEL.BIN",
    "modeling_evil.py",
    "setup.sh",
    "native.so",
]
LEFT += ["original/", "onnx/", "checkpoint-500/", "runs/", "__pycache__/"]


@pytest.mark.parametrize("name", LEFT)
def test_left_behind_and_said(name: str, place: Any, repair: Repair) -> None:
    path = place.model / name
    if name.endswith("/"):
        path.mkdir()
        (path / "tokenizer.model").write_bytes(b"x")
    else:
        path.write_bytes(b"the model that is not repaired")
    data = repair()
    assert data["notes"] == [f"left behind, not repaired and not needed to load: {name}"]
    assert not (place.out / name).exists()


def test_left_behind_in_one_line(place: Any, repair: Repair) -> None:
    for name in ("b.bin", "a.gguf", "sub/c.pt"):
        (place.model / name).write_bytes(b"x")
    assert repair()["notes"] == ["left behind, not repaired and not needed to load: a.gguf, b.bin, sub/c.pt"]


def test_an_adapter_in_a_folder_leaves_nothing_of_itself(place: Any, repair: Repair) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (place.model / "sub" / name).write_bytes(b"{}")
    said = "left behind, not repaired and not needed to load: sub/adapter_config.json, sub/adapter_model.safetensors"
    assert repair()["notes"] == [said]
    assert not (place.out / "sub" / "adapter_config.json").exists()


def test_hidden_files_are_not_carried(place: Any, repair: Repair) -> None:
    (place.model / ".git").mkdir()
    (place.model / ".git" / "config").write_text("x")
    (place.model / ".gitattributes").write_text("x")
    assert repair()["notes"] == []
    assert not any(path.name.startswith(".") for path in place.out.iterdir())


@pytest.mark.parametrize("said", [1, 10**30, "many", None])
def test_total_size(said: Any, place: Any, repair: Repair) -> None:
    index = json.loads((place.model / INDEX).read_bytes())
    right = index["metadata"]["total_size"]
    index["metadata"] |= {"total_size": said, "total_parameters": 7}
    (place.model / INDEX).write_text(json.dumps(index))
    data = repair()
    index["metadata"]["total_size"] = right if said is not None else None
    assert json.loads((place.out / INDEX).read_bytes()) == index
    note = f"{INDEX}: total_size says {str(said)[:40]}, the tensors hold {right} bytes; corrected"
    assert data["notes"] == ([] if said is None else [note])


CARDS: dict[str, tuple[str | None, str, str]] = {
    # the input's card -> how ours begins, how it ends
    "front matter and text": (
        "---\nlicense: mit\nbase_model: a/b\n---\n# Theirs\n\ntext\n",
        "---\nlicense: mit\nbase_model: a/b\n---\n\n# Repaired with weightguard\n",
        "\n## The card of the input\n\n# Theirs\n\ntext\n",
    ),
    "front matter alone": (
        "---\nlicense: mit\n---\n",
        "---\nlicense: mit\n---\n\n# Repaired with weightguard\n",
        "are in `weightguard.json`.\n",
    ),
    "text alone": ("# Theirs\n", "# Repaired with weightguard\n", "\n## The card of the input\n\n# Theirs\n"),
    "empty": ("", "# Repaired with weightguard\n", "are in `weightguard.json`.\n"),
    "none": (None, "# Repaired with weightguard\n", "are in `weightguard.json`.\n"),
}


@pytest.mark.parametrize("case", CARDS)
def test_card(case: str, place: Any, repair: Repair) -> None:
    given, begin, end = CARDS[case]
    (place.model / "README.md").unlink()
    if given is not None:
        (place.model / "README.md").write_text(given)
    repair()
    text = (place.out / "README.md").read_text()
    assert text.startswith(begin) and text.endswith(end)
    assert "weightguard repair MODEL --method magnitude --target weight --ratio 0.5" in text


def test_a_card_that_leads_out_is_not_read(place: Any, repair: Repair) -> None:
    (place.root / "other" / "README.md").write_text("secret")
    (place.model / "README.md").unlink()
    (place.model / "README.md").symlink_to(place.root / "other" / "README.md")
    repair()
    assert "secret" not in (place.out / "README.md").read_text()


def test_links_inside_become_files(place: Any, repair: Repair) -> None:
    (place.model / "tokenizer.json").rename(place.model / "sub" / "kept.json")
    (place.model / "tokenizer.json").symlink_to("sub/kept.json")
    repair()
    assert not (place.out / "tokenizer.json").is_symlink()
    assert (place.out / "tokenizer.json").read_bytes() == (place.model / "sub" / "kept.json").read_bytes()


def linked_out(model: Path) -> None:
    (model / "vocab.txt").symlink_to("/etc/hostname")


def linked_folder(model: Path) -> None:
    (model / "extra").symlink_to(model.parent / "other")


def enormous(model: Path) -> None:
    (model / "vocab.txt").touch()
    os.truncate(model / "vocab.txt", (1 << 30) + 1)


def unprintable(model: Path) -> None:
    (model / "a\nb.txt").write_text("x")


def not_utf8(model: Path) -> None:
    (model / os.fsdecode(b"\xff.txt")).write_text("x")


def damaged(model: Path) -> None:
    (model / "tokenizer_config.json").write_text('{"auto_map": ')


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "link out": (linked_out, "vocab.txt: a link out of the checkpoint, to {}; copy the file itself"),
    "link to a folder": (linked_folder, "extra: not a regular file (drwxr-xr-x)"),
    "more than a gigabyte": (
        enormous,
        "vocab.txt: 1073741825 bytes, too large for a file beside the weights; move it away",
    ),
    "new line in a name": (
        unprintable,
        "'a\\nb.txt': a file name that is not printable text; rename it, or move it away",
    ),
    "name that is not UTF-8": (
        not_utf8,
        "'\\udcff.txt': a file name that is not printable text; rename it, or move it away",
    ),
    "config that cannot be read": (damaged, "tokenizer_config.json: line 1 column 14: Expecting value"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_written(case: str, place: Any, repair: Repair) -> None:
    damage, message = REFUSED[case]
    damage(place.model)
    assert refusal(place, repair) == message.format(os.path.realpath("/etc/hostname"))


def test_an_output_can_be_repaired_again(place: Any, repair: Repair) -> None:
    """Its manifest is not carried on: the new one tells the new repair."""
    first = repair()
    again = wg.repair(
        str(place.out), method="random", group="row", ratio=0.5, target="weight", out=place.root / "again"
    )
    assert again.manifest is not None and again.manifest.data["method"] == "random" != first["method"]
    assert wg.verify(place.root / "again", against=str(place.out))
