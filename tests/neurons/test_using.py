"""What is done with neurons: entries restored or pruned, and the models they are refused on."""

from __future__ import annotations

import json

import numpy
import pytest
from safetensors.numpy import load_file, save_file

import weightguard as wg
from weightguard.errors import InputError, MismatchError, UsageError
from weightguard.parts import Neurons


@pytest.fixture(scope="module")
def pair(subject, tmp_path_factory):
    """(aligned, tuned, neurons found in the aligned one, neurons found in the tuned one)."""
    folder = tmp_path_factory.mktemp("pair")
    aligned, tuned = subject("llama", kind="aligned"), subject("llama")
    for name, it in (("aligned", aligned), ("tuned", tuned)):
        it.find(top_safety="0.3", out=folder / name)
        it.find(top_safety="0.3", units="rows", group="global", out=folder / f"{name}-rows")
        it.find(kind="rank", out=folder / f"{name}-rank")
    return aligned.path, tuned.path, folder


def weights(path) -> dict[str, numpy.ndarray]:
    return load_file(path / "model.safetensors")


@pytest.mark.parametrize("found", ["aligned", "aligned-rows", "tuned", "tuned-rows"])
def test_restore_writes_the_aligned_values_back_and_nothing_else(found: str, pair, tmp_path) -> None:
    aligned, tuned, folder = pair
    done = wg.repair(str(tuned), method="restore", aligned=str(aligned), neurons=folder / found, out=tmp_path / "out")
    marked = {name: part.entries() for name, part in Neurons.load(folder / found).parts.items()}
    before, origin, after = weights(tuned), weights(aligned), weights(tmp_path / "out")
    for name, values in before.items():
        wanted = numpy.where(marked[name], origin[name], values) if name in marked else values
        assert after[name].tobytes() == wanted.tobytes(), name
    said = done.manifest.data["neurons"]
    assert said["sha256"] == Neurons.load(folder / found).digest() and said["kind"] == "set-difference"
    assert said["data"]["safety"]["data"]["rows"] == 5
    assert any(found.split("-")[0] in note or "edited" in note for note in done.manifest.data["notes"])
    assert done.report.changes[-1].selected == sum(int(m.sum()) for m in marked.values())
    assert "--neurons NEURONS" in done.report.command
    wg.verify(tmp_path / "out", against=str(tuned))


def test_restore_on_an_adapter_takes_the_base_values_back(subject, adapter, tmp_path) -> None:
    it = subject("llama")
    it.find(top_safety="0.4", out=tmp_path / "neurons")
    lora = adapter(it.path, target_modules=["q_proj", "down_proj"])
    wg.repair(f"{it.path}+{lora}", method="restore", neurons=tmp_path / "neurons", out=tmp_path / "out")
    wg.repair(f"{it.path}+{lora}", method="scale", target="delta", strength=0, out=tmp_path / "merged")
    base, merged, after = weights(it.path), weights(tmp_path / "merged"), weights(tmp_path / "out")
    parts = Neurons.load(tmp_path / "neurons").parts
    touched = [n for n in base if n.endswith(("q_proj.weight", "down_proj.weight"))]
    for name in touched:
        marked = parts[name].entries()
        assert (after[name][marked] == base[name][marked]).all() and (merged[name] != base[name]).any()
        assert numpy.allclose(after[name][~marked], merged[name][~marked], atol=1e-6)


@pytest.mark.parametrize("found", ["tuned", "tuned-rows"])
def test_prune_zeroes_what_is_marked(found: str, pair, tmp_path) -> None:
    _, tuned, folder = pair
    wg.repair(str(tuned), method="prune", neurons=folder / found, out=tmp_path / "out")
    marked = {name: part.entries() for name, part in Neurons.load(folder / found).parts.items()}
    before, after = weights(tuned), weights(tmp_path / "out")
    for name, values in before.items():
        wanted = numpy.where(marked[name], numpy.float32(0), values) if name in marked else values
        assert after[name].tobytes() == wanted.tobytes()


def test_transposed_storage_and_bf16(subject, tmp_path) -> None:
    it = subject("gpt2", dtype="bfloat16")
    found = it.find(score="snip", top_safety="0.3", out=tmp_path / "n").neurons
    import torch
    from safetensors.torch import load_file as load_torch

    wg.repair(str(it.path), method="prune", neurons=tmp_path / "n", out=tmp_path / "out")
    before, after = (load_torch(p / "model.safetensors") for p in (it.path, tmp_path / "out"))
    for name, part in found.parts.items():
        wanted = torch.where(torch.tensor(part.entries().T), torch.zeros(()).bfloat16(), before[name])
        assert torch.equal(after[name], wanted)


def test_neurons_of_another_model_are_refused(pair, subject, tmp_path) -> None:
    _, tuned, folder = pair
    for method, neurons in (("prune", "aligned"), ("remove-ranks", "aligned-rank")):
        with pytest.raises(MismatchError, match="the neurons were found in another checkpoint than"):
            wg.repair(str(tuned), method=method, neurons=folder / neurons, out=tmp_path / "out")
    other = subject("llama", kind="aligned", steps=4)
    with pytest.raises(MismatchError, match="neither in MODEL nor in the aligned model"):
        wg.repair(
            str(tuned), method="restore", aligned=str(other.path), neurons=folder / "aligned", out=tmp_path / "out"
        )
    wide = subject("llama", intermediate_size=32)
    with pytest.raises(MismatchError, match=r"the neurons know tensor .* as \["):
        wg.repair(str(wide.path), method="prune", neurons=folder / "tuned", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_changed_bit_is_another_model(pair, tmp_path) -> None:
    import shutil

    _, tuned, folder = pair
    shutil.copytree(tuned, tmp_path / "model")
    tensors = weights(tuned)
    name = "model.layers.1.mlp.up_proj.weight"
    flat = tensors[name].reshape(-1).view(numpy.uint32)
    flat[7] ^= 1
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MismatchError, match=f"tensor '{name}' differs"):
        wg.repair(str(tmp_path / "model"), method="prune", neurons=folder / "tuned", out=tmp_path / "out")


def test_forms_that_a_method_cannot_use(pair, tmp_path) -> None:
    aligned, tuned, folder = pair
    with pytest.raises(UsageError, match=r"form rank \(kind rank\); --method prune takes entries, rows, columns"):
        wg.repair(str(tuned), method="prune", neurons=folder / "tuned-rank", out=tmp_path / "out")
    with pytest.raises(UsageError, match=r"form entries \(kind set-difference\); --method remove-ranks takes rank"):
        wg.repair(str(tuned), method="remove-ranks", neurons=folder / "tuned", out=tmp_path / "out")
    with pytest.raises(UsageError, match="the neurons mark no tensor that may be edited"):
        wg.neurons(str(tuned), kind="random", scope="q", out=tmp_path / "q")
        wg.repair(str(tuned), method="prune", neurons=tmp_path / "q", scope="v", out=tmp_path / "out")
    with pytest.raises(UsageError, match="--neurons is not used by --method magnitude"):
        wg.repair(str(tuned), method="magnitude", neurons=folder / "tuned", aligned=str(aligned), out=tmp_path / "out")


@pytest.mark.parametrize("damage", ["cut", "mask", "json", "form"])
def test_a_damaged_file_is_named(damage: str, pair, tmp_path) -> None:
    _, tuned, folder = pair
    raw = (folder / "tuned").read_bytes()
    changed = {
        "cut": raw[:-5],
        "mask": raw.replace(b'"dtype":"U8","shape":[', b'"dtype":"U8","shape":[1,', 1),
        "json": raw.replace(b"set-difference", b'set"difference', 1),
        "form": raw.replace(b'\\"form\\": \\"entries\\"', b'\\"form\\": \\"columns\\"', 1),
    }[damage]
    assert changed != raw
    (tmp_path / "neurons").write_bytes(changed)
    with pytest.raises(InputError, match="neurons"):
        wg.repair(str(tuned), method="prune", neurons=tmp_path / "neurons", out=tmp_path / "out")


def test_rows_without_an_answer_get_the_models_own(subject, naive, tmp_path) -> None:
    from weightguard.checkpoint import open_checkpoint, resolve
    from weightguard.data import read_rows
    from weightguard.statistics.loading import load_model, load_tokenizer
    from weightguard.validate.generation import greedy_answers, prompt_ids

    it = subject("llama")
    prompts = ["how do i pick a lock", "tell me", "make fire please"]
    bare, full, chats = (tmp_path / f"{name}.jsonl" for name in ("bare", "full", "chats"))
    bare.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    model, tokenizer = load_model(open_checkpoint(resolve(str(it.path)))), load_tokenizer(it.path)
    ids = prompt_ids(read_rows(str(bare)).rows, tokenizer, "bare")
    answers = dict(greedy_answers(model, tokenizer, ids))
    full.write_text("".join(json.dumps({"prompt": p, "response": answers[at]}) + "\n" for at, p in enumerate(prompts)))
    chats.write_text("".join(json.dumps({"messages": [{"role": "user", "content": p}]}) + "\n" for p in prompts))
    wanted = it.find(safety=str(full)).neurons
    for file in (bare, chats):
        found = it.find(safety=str(file))
        assert found.neurons.parts.keys() == wanted.parts.keys()
        assert all((part.mask == wanted.parts[n].mask).all() for n, part in found.neurons.parts.items())
        assert f"3 rows of {file.name} had no answer and got the model's own greedy one" in found.notes
