"""Routed experts: one tensor each, or packed in one; experts without a token; what is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

import weightguard as wg

Build = Callable[..., Path]
# Sixteen experts, one for each token: some see none.
MANY = {
    "mixtral": {"num_local_experts": 16, "num_experts_per_tok": 1},
    "gpt_oss": {"num_local_experts": 16, "num_experts_per_tok": 1},
    "llama4_text": {"num_local_experts": 16},
    "deepseek_v3": {"n_routed_experts": 16, "num_experts_per_tok": 1},
}
SOME = [name if name == "gpt_oss" else pytest.param(name, marks=pytest.mark.full) for name in MANY]
many = pytest.mark.parametrize("family", SOME)


def packed_name(expert: str) -> str:
    return expert.partition("#")[0]


def one_row(path: Path) -> Path:
    path.write_text(json.dumps({"prompt": "tell me", "response": "sure"}) + "\n")
    return path


@many
def test_an_expert_that_saw_no_token_is_left_alone_and_named(
    family: str, checkpoint: Build, tmp_path: Path, files: SimpleNamespace, capsys: Any
) -> None:
    from weightguard.cli.main import main

    model, aligned = (checkpoint(family, kind=kind, **MANY[family]) for kind in ("tuned", "aligned"))
    data = one_row(tmp_path / "row.jsonl")
    assert main(["stats", str(model), "--data", str(data), "-o", str(tmp_path / "S")]) == 0
    norms = wg.stats(model, data=str(data))
    unseen = set(norms.unseen)
    assert unseen and all("experts" in name for name in unseen)
    said = capsys.readouterr().out
    assert f"no counted token reached {len(unseen)} of them" in said and next(iter(norms.unseen)) in said

    result = wg.repair(model, aligned=str(aligned), stats=tmp_path / "S", ratio="0.25", out=tmp_path / "OUT")
    assert set(result.plan.edits) == set(norms.sums) - unseen
    assert any(f"{len(unseen)} tensors" in note and "left alone" in note for note in result.report.notes)
    manifest = json.loads((tmp_path / "OUT" / "weightguard.json").read_text())
    assert set(manifest["left_alone"]) == unseen
    assert all("no counted token" in known["skipped"] for known in manifest["left_alone"].values())
    wg.verify(tmp_path / "OUT", against=str(model))
    before, after = files.tensors(model), files.tensors(tmp_path / "OUT")
    for name in unseen:
        stored, number = packed_name(name), name.partition("#")[2]
        place = int(number) if number else slice(None)
        assert (before[stored][place] == after[stored][place]).all(), name


def test_global_counts_leave_unseen_experts_out(checkpoint: Build, tmp_path: Path) -> None:
    model, aligned = (checkpoint("mixtral", kind=kind, **MANY["mixtral"]) for kind in ("tuned", "aligned"))
    data = one_row(tmp_path / "row.jsonl")
    norms = wg.stats(model, data=str(data))
    result = wg.repair(model, aligned=str(aligned), harmful=str(data), ratio="0.5", group="global", dry_run=True)
    sizes = {t.name: t.shape[0] * t.shape[1] for t in wg.inspect(str(model)).tensors if t.role}
    assert result.plan.selected == (sum(sizes[n] for n in sizes if n not in norms.unseen) + 1) // 2
    assert not set(norms.unseen) & set(result.plan.edits)


@pytest.mark.parametrize(
    "family",
    [
        "gpt_oss",
        pytest.param("granitemoe", marks=pytest.mark.full),
        pytest.param("llama4_text", marks=pytest.mark.full),
        "mixtral",
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.full)])
def test_shards_and_dtypes(
    family: str, dtype: str, checkpoint: Build, data: Mapping[str, Path], tmp_path: Path, files: SimpleNamespace
) -> None:
    """The two sides of an update lie in different shards; headers stay; only bytes of edited experts change."""
    model = checkpoint(family, dtype, sharded=True, tied=True)
    aligned = checkpoint(family, dtype, sharded=True, tied=True, kind="aligned")
    assert len([*model.glob("*.safetensors")]) > 1
    norms = wg.stats(model, data=str(data["harmful"]), out=tmp_path / "S")
    scope = {"mixtral": "expert_gate,expert_down"}.get(family, "expert_gate_up,expert_down")
    wg.repair(model, aligned=str(aligned), stats=tmp_path / "S", ratio="1", scope=scope, out=tmp_path / "OUT")
    wg.verify(tmp_path / "OUT", against=str(model))
    before, after, origin = (files.tensors(each) for each in (model, tmp_path / "OUT", aligned))
    wanted = {packed_name(n) for n in norms.sums if "experts" in n or "block_sparse" in n} - {
        n for n in before if ".w3." in n or "shared" in n
    }
    for name in before:
        assert (after[name] == (origin if name in wanted else before)[name]).all(), name
    for shard in model.glob("*.safetensors"):
        assert files.header(tmp_path / "OUT" / shard.name) == files.header(shard)


@pytest.mark.parametrize(
    "family",
    ["mixtral", pytest.param("gpt_oss", marks=pytest.mark.full), pytest.param("deepseek_v3", marks=pytest.mark.full)],
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_an_adapter_beside_experts_is_merged(
    family: str, checkpoint: Build, adapter: Build, data: Mapping[str, Path], tmp_path: Path
) -> None:
    """MODEL+ADAPTER, target delta: a full checkpoint; the base's experts stay what they are."""
    base = checkpoint(family)
    lora = adapter(base, target_modules=["q_b_proj", "kv_b_proj"] if family == "deepseek_v3" else ["q_proj", "o_proj"])
    result = wg.repair(lora, target="delta", harmful=str(data["harmful"]), ratio="0.3", out=tmp_path / "OUT")
    assert result.plan.edits and not any("#" in name or ".experts." in name for name in result.plan.edits)
    wg.verify(tmp_path / "OUT", against=str(lora))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_factors_over_packed_experts_are_refused(checkpoint: Build, adapter: Build, tmp_path: Path, line: Any) -> None:
    lora = adapter(checkpoint("mixtral"), target_modules="all-linear")
    code, said = line("repair", lora, "--method", "magnitude", "-o", tmp_path / "OUT")
    assert code == 6 and "target_parameters" in said and "merge" in said


def over_each_expert(base: Path, directory: Path) -> Path:
    """An adapter over the experts of layer 1 as peft wrote them when each expert was a module of its own."""
    from safetensors.numpy import load_file, save_file

    random, names = numpy.random.default_rng(4), ("w1", "w2", "w3")
    factors = {}
    for name, held in load_file(base / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if ".layers.1." in name and module.endswith(names):
            for part, shape in {"A": (2, held.shape[1]), "B": (held.shape[0], 2)}.items():
                drawn = random.normal(size=shape).astype("float32")
                factors[f"base_model.model.{module}.lora_{part}.weight"] = drawn
    directory.mkdir()
    save_file(factors, directory / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": list(names)}
    (directory / "adapter_config.json").write_text(json.dumps({**said, "base_model_name_or_path": str(base)}))
    return directory


@pytest.mark.filterwarnings("ignore")
def test_factors_over_each_expert_are_merged_but_not_measured(
    checkpoint: Build, tmp_path: Path, data: Mapping[str, Path], files: SimpleNamespace, line: Any
) -> None:
    base = checkpoint("mixtral")
    lora = over_each_expert(base, tmp_path / "lora")
    code, said = line("repair", lora, "--target", "delta", "--harmful", data["harmful"], "-o", tmp_path / "OUT")
    assert code == 6 and "routed experts" in said and "merge the adapter" in said
    wg.repair(lora, method="magnitude", target="delta", ratio=0, out=tmp_path / "OUT")
    factors, before, after = files.tensors(lora), files.tensors(base), files.tensors(tmp_path / "OUT")
    for name in (name for name in before if ".layers.1." in name and ".experts." in name):
        a, b = (factors[f"base_model.model.{name.removesuffix('.weight')}.lora_{x}.weight"] for x in "AB")
        assert numpy.allclose(after[name], before[name] + 2 * (b @ a), atol=1e-5), name


@pytest.mark.parametrize(
    "family",
    ["mixtral", pytest.param("granitemoe", marks=pytest.mark.full), pytest.param("gpt_oss", marks=pytest.mark.full)],
)
def test_gradients_are_those_of_each_expert(family: str, checkpoint: Build, files: SimpleNamespace) -> None:
    """Against autograd through a model whose experts are 2-D leaves of their own."""
    import torch

    from weightguard.checkpoint import decoder_linears, open_checkpoint, resolve
    from weightguard.data import Encoded
    from weightguard.statistics.gradients import absolute_gradients
    from weightguard.statistics.loading import load_model

    source = open_checkpoint(resolve(str(checkpoint(family))))
    named = decoder_linears(source.config, source.tensors)
    rows = [
        Encoded(numpy.arange(3, 13), numpy.arange(10) > 4, 1),
        Encoded(numpy.arange(30, 36), numpy.arange(6) > 1, 2),
    ]
    model = load_model(source, dtype="float64")
    found = absolute_gradients(model, source.config, named, rows, lambda *_: None)
    wanted: dict[str, torch.Tensor] = {}
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for row in rows:
        model.zero_grad()
        ids, at = torch.tensor(row.ids)[None], torch.tensor(numpy.flatnonzero(row.counted))
        loss = torch.nn.functional.cross_entropy(model(ids).logits[0, at - 1], ids[0, at])
        loss.backward()
        for name, each in gradients_on_disk(family, model).items():
            wanted[name] = wanted.get(name, 0) + each.abs()
    experts = [name for name, linear in named.items() if linear.expert is not None]
    assert experts and set(experts) == set(wanted)
    for name in experts:
        turned = wanted[name].T if named[name].transposed else wanted[name]
        assert (found[name] - turned).abs().max() <= 1e-6 * turned.abs().max().clamp(min=1e-9), name


def gradients_on_disk(family: str, model: Any) -> dict[str, Any]:
    found = {}
    for layer, block in enumerate(model.model.layers):
        experts = (block.block_sparse_moe if family == "granitemoe" else block.mlp).experts
        for e in range(4):
            up, down = experts.gate_up_proj.grad[e], experts.down_proj.grad[e]
            place = f"model.layers.{layer}"
            if family == "mixtral":
                w1, w3 = up.chunk(2)
                parts = {"w1": w1, "w3": w3, "w2": down}
                found |= {f"{place}.block_sparse_moe.experts.{e}.{w}.weight": each for w, each in parts.items()}
            elif family == "granitemoe":
                found[f"{place}.block_sparse_moe.input_linear.weight#{e}"] = up
                found[f"{place}.block_sparse_moe.output_linear.weight#{e}"] = down
            else:
                found[f"{place}.mlp.experts.gate_up_proj#{e}"] = up
                found[f"{place}.mlp.experts.down_proj#{e}"] = down
    return found


@many
def test_neurons_of_experts(family: str, checkpoint: Build, data: Mapping[str, Path], tmp_path: Path) -> None:
    """Neurons are found in experts, never in one of which nothing is known, and a repair takes them up."""
    model, aligned = (checkpoint(family, kind=kind, **MANY[family]) for kind in ("tuned", "aligned"))
    row = one_row(tmp_path / "row.jsonl")
    norms = wg.stats(aligned, data=str(row), tokens="response")
    found = wg.neurons(aligned, safety=str(row), top_utility="0", top_safety="0.1", out=tmp_path / "N")
    assert set(found.neurons.parts) == set(norms.sums) - set(norms.unseen)
    wg.repair(model, method="restore", aligned=str(aligned), neurons=tmp_path / "N", out=tmp_path / "OUT")
    wg.verify(tmp_path / "OUT", against=str(model))


def test_training_all_of_a_model_with_packed_experts_is_refused(
    checkpoint: Build, data: Mapping[str, Path], tmp_path: Path, line: Any
) -> None:
    code, said = line("finetune", checkpoint("mixtral"), "--data", data["benign"], "-o", tmp_path / "OUT")
    assert code == 6 and "gate" in said and "--lora" in said and not (tmp_path / "OUT").exists()


@pytest.mark.parametrize(
    "family",
    ["mixtral", pytest.param("gpt_oss", marks=pytest.mark.full), pytest.param("llama4", marks=pytest.mark.full)],
)
def test_methods_that_run_layers_or_train_linears_say_what_they_cannot_do(
    family: str, checkpoint: Build, data: Mapping[str, Path], tmp_path: Path, line: Any
) -> None:
    model, aligned = checkpoint(family), checkpoint(family, kind="aligned")
    rows = ["--aligned", aligned, "--safety", data["harmful"], "--benign", data["benign"], "-o", tmp_path / "OUT"]
    if family == "llama4":  # refit repairs the others: tests/methods/test_refit.py
        code, said = line("repair", model, "--method", "refit", *rows)
        assert code == 6 and "layer by layer" in said and "tower" in said
    code, said = line("repair", model, "--method", "gradient-reset", *rows)
    assert code == 6 and "--scope q,k,v,o" in said
    assert not (tmp_path / "OUT").exists()
    wg.repair(model, method="gradient-reset", aligned=str(aligned), safety=str(data["harmful"]), scope="q,k,v,o",
              benign=str(data["benign"]), out=tmp_path / "OUT")  # fmt: skip
    wg.verify(tmp_path / "OUT", against=str(model))


def test_a_decoder_below_another_module_is_not_walked(
    checkpoint: Build, data: Mapping[str, Path], tmp_path: Path, line: Any
) -> None:
    rows = ["--aligned", checkpoint("opt", kind="aligned"), "--safety", data["harmful"], "--benign", data["benign"]]
    code, said = line("repair", checkpoint("opt"), "--method", "refit", *rows, "-o", tmp_path / "OUT")
    assert code == 6 and "layer by layer" in said


def damaged(model: Path, directory: Path, tensors: Callable[[dict[str, Any]], None], **config: Any) -> Path:
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, directory)
    held = load_file(model / "model.safetensors")
    tensors(held)
    save_file({n: t.contiguous() for n, t in held.items()}, directory / "model.safetensors", {"format": "pt"})
    found = json.loads((model / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**found, **config}))
    return directory


def test_layers_that_guess_ahead_stay_and_are_named(
    checkpoint: Build, data: Mapping[str, Path], tmp_path: Path, files: SimpleNamespace
) -> None:
    """DeepSeek V3 as published holds a layer beyond the last one, which no forward pass runs."""

    def add(held: dict[str, Any]) -> None:
        held |= {n.replace(".1.", ".2.", 1): t.clone() for n, t in held.items() if n.startswith("model.layers.1.")}

    model = damaged(checkpoint("deepseek_v3"), tmp_path / "model", add, num_nextn_predict_layers=1)
    result = wg.repair(
        model, harmful=str(data["harmful"]), target="weight", ratio="0.1", group="row", out=tmp_path / "OUT"
    )
    assert not any(".layers.2." in name for name in result.plan.edits)
    assert any("tensors of layers that guess" in note for note in result.report.notes)
    before, after = files.raw(model), files.raw(tmp_path / "OUT")
    assert {n for n in before if before[n] != after[n]} == set(result.plan.edits)


@pytest.mark.parametrize("family", ["mixtral", pytest.param("granitemoe", marks=pytest.mark.full)])
@pytest.mark.filterwarnings("ignore")
def test_experts_packed_as_in_memory_are_named_and_the_way_out_is_one(
    family: str, checkpoint: Build, tmp_path: Path, files: SimpleNamespace, line: Any
) -> None:
    from transformers import AutoModelForCausalLM

    published = checkpoint(family)
    model = AutoModelForCausalLM.from_pretrained(published)
    model.save_pretrained(tmp_path / "own", save_original_format=False)
    code, said = line("repair", tmp_path / "own", "--target", "weight", "--method", "magnitude", "-o", tmp_path / "OUT")
    assert code == 6 and "_proj' packs experts" in said
    assert "missing" not in said and f"published {family} models" in said and "from_config(model.config)" in said
    assert wg.inspect(tmp_path / "own").problems == (said.removeprefix("weightguard: "),)
    again = AutoModelForCausalLM.from_config(model.config)
    again.load_state_dict(AutoModelForCausalLM.from_pretrained(tmp_path / "own").state_dict())
    again.save_pretrained(tmp_path / "again")
    assert files.raw(tmp_path / "again") == files.raw(published)


GATE_UP, W1 = "model.layers.1.mlp.experts.gate_up_proj", "model.layers.1.block_sparse_moe.experts.3.w1.weight"
DAMAGE: dict[str, tuple[str, Callable[[dict[str, Any]], Any], dict[str, Any], str]] = {
    "an expert is missing": ("mixtral", lambda t: t.pop(W1), {}, f"missing tensor: no {W1.removeprefix('model.')} for"),
    "an expert too many": ("mixtral", lambda t: None, {"num_local_experts": 3}, "config.json: 3 experts, but"),
    "an expert too few": ("mixtral", lambda t: None, {"num_local_experts": 5}, "experts.4.w1.weight for the expert_gate"),
    "no number of experts": ("mixtral", lambda t: None, {"num_local_experts": "4"}, "num_local_experts is 4; it must be"),
    "a million million experts": ("mixtral", lambda t: None, {"num_local_experts": 10**12}, "num_local_experts is 1000"),
    "packed experts are missing": ("gpt_oss", lambda t: t.pop(GATE_UP), {}, "no layers.1.mlp.experts.gate_up_proj#0 for"),
    "packed experts are a matrix": ("gpt_oss", lambda t: t.update({GATE_UP: t[GATE_UP][0]}), {}, "gate_up_proj#0 for"),
    "packed experts are too few": ("gpt_oss", lambda t: t.update({GATE_UP: t[GATE_UP][:3]}), {}, "gate_up_proj#3 for"),
    "a tensor named like an expert": (
        "gpt_oss", lambda t: t.update({f"{GATE_UP}#1": t[GATE_UP][0].clone()}), {}, "the name of an expert"),
    "a dense layer beside experts": (
        "qwen3_moe",
        lambda t: t.update({"model.layers.0.mlp.up_proj.weight": t["model.layers.0.self_attn.q_proj.weight"].clone()}),
        {}, "layers.0: holds the up of another kind of layer"),
}  # fmt: skip


@pytest.mark.parametrize("case", [*DAMAGE])
def test_damaged_experts_are_named(case: str, checkpoint: Build, tmp_path: Path, line: Any) -> None:
    family, change, config, words = DAMAGE[case]
    model = damaged(checkpoint(family), tmp_path / "model", change, **config)
    code, said = line("repair", model, "--method", "magnitude", "-o", tmp_path / "OUT")
    assert code == 3 and words in said, said
    assert not (tmp_path / "OUT").exists()


def test_heads_that_are_mixed_are_refused(
    checkpoint: Build, data: Mapping[str, Path], tmp_path: Path, line: Any
) -> None:
    one_key = {"new_decoder_architecture": False, "multi_query": True, "num_attention_heads": 2, "num_kv_heads": None}
    for family, layout in (("gpt_neox", {}), ("falcon", {}), ("falcon", one_key), ("deepseek_v3", {})):
        common = ["--units", "heads", "--safety", data["benign"], "--top-utility", "0", "-o", tmp_path / "N"]
        code, said = line("neurons", checkpoint(family, **layout), *common)
        assert code == 6 and "mixes heads" in said and "--units rows" in said


@pytest.mark.parametrize(
    "layout", [{"multi_query": True}, {"multi_query": False}, {"alibi": True}, {"parallel_attn": False}]
)
def test_older_falcons(layout: dict[str, Any], checkpoint: Build, data: Mapping[str, Path], tmp_path: Path) -> None:
    """Fused q, k and v of either layout: an edit goes by rows of the fused tensor."""
    from transformers import AutoModelForCausalLM

    model = checkpoint("falcon", new_decoder_architecture=False, num_kv_heads=None, **layout)
    result = wg.repair(
        model, harmful=str(data["harmful"]), target="weight", ratio="0.1", group="row", out=tmp_path / "OUT"
    )
    assert len(result.plan.edits) == 8
    wg.verify(tmp_path / "OUT", against=str(model))
    _, said = AutoModelForCausalLM.from_pretrained(tmp_path / "OUT", output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
