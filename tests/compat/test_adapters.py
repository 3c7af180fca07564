"""LoRA adapters as peft saves them: repaired into full checkpoints, or kept as adapters that stock peft loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

import weightguard as wg

Build = Callable[..., Path]
GPT2 = ["c_attn", "c_proj", "c_fc"]
LINEARS = [*(f"{x}_proj" for x in "qkvo"), "gate_proj", "up_proj", "down_proj"]
ATTENTION = r".*\.layers\.[01]\.self_attn\.(q|k)_proj"
PARTS, PROJECTIONS = "self_attn|attention|attn|mixer|mlp|feed_forward|ffn|dense|mixer", "q_proj|v_proj|up_proj|linear"
# Adapters trained with unsloth say this, with three or with four lazy repeats.
UNSLOTH = (
    rf"(?:.*?(?:vision|language|text).*?(?:{PARTS}).*?(?:{PROJECTIONS}).*?)"
    rf"|(?:\bmodel\.layers\.[\d]{{1,}}\.(?:{PARTS})\.(?:{PROJECTIONS}))"
)
# name -> (family, dtype of the base, settings of the adapter)
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "all targets": ("llama", "float32", {"target_modules": "all-linear"}),
    "q and v": ("qwen2", "float32", {"target_modules": ["q_proj", "v_proj"]}),
    "regex targets": ("mistral", "bfloat16", {"target_modules": ATTENTION}),
    "regex of unsloth": ("llama", "float32", {"target_modules": UNSLOTH}),
    "one layer": ("qwen3", "float32", {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]}),
    "patterns": ("llama", "float32", {
        "target_modules": ["q_proj", "o_proj", "down_proj"], "rank_pattern": {"o_proj": 2, r"layers\.1\..*q_proj": 6},
        "alpha_pattern": {"model.layers.0.self_attn.q_proj": 3, "down_proj": 20},
    }),
    "rslora": ("gemma", "float16", {"target_modules": "all-linear", "use_rslora": True, "lora_alpha": 4}),
    "rslora with patterns": ("llama", "float32", {
        "target_modules": ["q_proj", "v_proj"], "use_rslora": True, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 5},
    }),
    "fan in, fan out": ("gpt2", "float32", {"target_modules": GPT2, "fan_in_fan_out": True}),
    "fan in, fan out in bf16": ("gpt2", "bfloat16", {"target_modules": GPT2, "fan_in_fan_out": True}),
    "fused": ("phi3", "float32", {"target_modules": "all-linear"}),
    "bf16 over fp32": ("llama", "float32", {"target_modules": ["q_proj", "down_proj"], "dtype": "bfloat16"}),
    "fp32 over fp16": ("llama", "float16", {"target_modules": ["q_proj", "down_proj"]}),
    "another name": ("llama", "float32", {"target_modules": ["q_proj"], "name": "mine"}),
}  # fmt: skip
# Bits below which two values of a dtype are one rounding apart.
EPSILON = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}


@dataclass(frozen=True)
class Case:
    """A base, an adapter over it, statistics of both, and what peft makes of them by on-disk name of the base.

    updates: s·B·A in float64 in storage order. sizes: the same of |B| and |A|, which bounds what a matmul rounds.
    """

    base: Path
    lora: Path
    dtype: str
    stats: Path
    updates: Mapping[str, numpy.ndarray]
    sizes: Mapping[str, numpy.ndarray]
    merged: Mapping[str, numpy.ndarray]
    group: str
    rounding: str

    @property
    def transposed(self) -> bool:
        return self.base.name.startswith("gpt2")


@pytest.fixture(scope="module", params=KINDS)
def case(
    request: pytest.FixtureRequest, checkpoint: Build, adapter: Build, data: Mapping[str, Path], files: SimpleNamespace
) -> Case:
    family, dtype, settings = KINDS[request.param]
    base = checkpoint(family, dtype)
    lora = adapter(base, **settings)
    stats = request.getfixturevalue("tmp_path_factory").mktemp("stats") / "S"
    wg.stats(lora, data=str(data["harmful"]), out=stats)
    at = [*KINDS].index(request.param)
    selection = ("row", "matrix", "global")[at % 3], ("exact", "reference")[at % 2]
    return Case(base, lora, dtype, stats, *products(base, lora, files), merged_by_peft(base, lora), *selection)


pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning",
    "ignore:.*(fan_in_fan_out|save_embedding_layers|invalid shape|tie_word_embeddings)",
)


@pytest.fixture
def small(checkpoint: Build, adapter: Build) -> tuple[Path, Path]:
    """A base and an adapter over every linear of it."""
    base = checkpoint("llama")
    return base, adapter(base, target_modules="all-linear")


def settings_of(lora: Path) -> dict[str, Any]:
    return json.loads((lora / "adapter_config.json").read_text())


def merged_by_peft(base: Path, lora: Path) -> dict[str, numpy.ndarray]:
    """peft's own merge in the dtype of the base, by on-disk name."""
    import peft
    from transformers import AutoModelForCausalLM

    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), lora).merge_and_unload()
    return {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}


def products(base: Path, lora: Path, files: SimpleNamespace) -> tuple[dict[str, numpy.ndarray], ...]:
    """s·B·A and s·|B|·|A| in float64, by on-disk name of the base: the factors from the file, every s from peft."""
    import peft
    from transformers import AutoModelForCausalLM

    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), lora)
    factors, found = files.tensors(lora), ({}, {})
    for path, module in model.named_modules():
        if hasattr(module, "lora_A"):
            a, b = (factors[f"{path}.lora_{x}.weight"].astype(numpy.float64) for x in "AB")
            for into, product in zip(found, (b @ a, numpy.abs(b) @ numpy.abs(a)), strict=True):
                whole = module.scaling["default"] * product
                into[path.removeprefix("base_model.model.") + ".weight"] = whole.T if module.fan_in_fan_out else whole
    return found


def test_ratio_0_is_the_merge_of_peft(case: Case, tmp_path: Path, files: SimpleNamespace, input_is_kept: Any) -> None:
    input_is_kept(case.base, case.lora)
    wg.repair(case.lora, stats=case.stats, target="delta", ratio=0, out=tmp_path / "OUT")
    before, after = files.tensors(case.base), files.tensors(tmp_path / "OUT")
    assert {name for name in before if not files.same_bits(before[name], after[name])} == set(case.updates)
    for name, update in case.updates.items():
        exact = before[name].astype(numpy.float64) + update
        scale = numpy.maximum(numpy.abs(exact), numpy.abs(before[name]))
        # Ours is the exact sum, once rounded to float32 and once to the dtype; peft's product is a float32 matmul.
        ours, theirs = numpy.abs(after[name] - exact), numpy.abs(after[name] - case.merged[name])
        assert (ours <= (0.5 * EPSILON[case.dtype] + 2**-23) * scale).all(), name
        assert (theirs <= EPSILON[case.dtype] * scale + 2**-22 * case.sizes[name]).all(), name
    wg.verify(tmp_path / "OUT", against=str(case.lora))


def test_a_masked_update_keeps_the_base_where_masked_and_the_merge_elsewhere(
    case: Case, tmp_path: Path, files: SimpleNamespace, naive: SimpleNamespace
) -> None:
    options = {"group": case.group, "rounding": case.rounding}
    for ratio, out in (("0", "merge"), ("0.3", "OUT")):
        wg.repair(case.lora, stats=case.stats, target="delta", ratio=ratio, out=tmp_path / out, **options)
    before, merge, after = (files.tensors(path) for path in (case.base, tmp_path / "merge", tmp_path / "OUT"))
    norms, logical = norms_in(case.stats), {n: u.T if case.transposed else u for n, u in case.updates.items()}
    scores = {name: numpy.abs(delta.astype(numpy.float32)) * norms[name] for name, delta in logical.items()}
    for name, mask in naive.masks(scores, "0.3", case.group, case.rounding).items():
        wanted = numpy.where(mask.T if case.transposed else mask, before[name], merge[name])
        assert files.same_bits(after[name], wanted), name
    wg.verify(tmp_path / "OUT", against=f"{case.base}+{case.lora}")
    check_model(tmp_path / "OUT", case.base, files)


def norms_in(path: Path) -> dict[str, numpy.ndarray]:
    """sqrt of the mean square from a statistics file, rounded once to float32."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        tokens = json.loads(file.metadata()["weightguard_statistics"])["counted_tokens"]
        return {n: numpy.sqrt(file.get_tensor(n) / tokens).astype(numpy.float32) for n in file.keys()}  # noqa: SIM118


def check_model(out: Path, base: Path, files: SimpleNamespace) -> None:
    """A full checkpoint with the base's names, dtypes and files, that stock transformers runs."""
    import torch
    from transformers import AutoModelForCausalLM

    assert {p.name for p in out.iterdir()} == {p.name for p in base.iterdir()} | {"weightguard.json"}
    for shard in base.glob("*.safetensors"):
        assert files.header(out / shard.name) == files.header(shard)
    model, said = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    assert model.generate(torch.tensor([[6, 7, 8]]), max_new_tokens=2, min_new_tokens=2, do_sample=False).shape == (
        1,
        5,
    )


@pytest.mark.parametrize("ratio", ["0.1", "0.3"])
def test_factors_follow_the_published_rule(
    ratio: str, case: Case, tmp_path: Path, files: SimpleNamespace, naive: SimpleNamespace
) -> None:
    """Per row of lora_A and lora_B, k = n - int(n (1 - ratio)) entries go by |A| sqrt(mean x²) and |B| sqrt(mean (Ax)²)."""
    result = wg.repair(case.lora, stats=case.stats, target="factor", ratio=ratio, out=tmp_path / "OUT")
    assert dict(result.plan.options)["rounding"] == "reference"
    before, after, norms = files.tensors(case.lora), files.tensors(tmp_path / "OUT"), norms_in(case.stats)
    assert set(result.plan.edits) == set(before) == set(after)
    for name, factor in before.items():
        mask = naive.masks({name: numpy.abs(factor) * norms[name]}, ratio, "row", "reference")[name]
        assert (mask.sum(1) == factor.shape[1] - int(factor.shape[1] * (1 - float(ratio)))).all()
        assert files.same_bits(after[name], numpy.where(mask, numpy.float32(0), factor)), name
    wg.verify(tmp_path / "OUT", against=str(case.lora))
    if ratio == "0.3":
        check_adapter(tmp_path / "OUT", case.base, case.lora, files)


def check_adapter(out: Path, base: Path, lora: Path, files: SimpleNamespace) -> None:
    """An adapter with the same config and header that stock peft loads; its modules hold what the file holds."""
    import peft
    from transformers import AutoModelForCausalLM

    weights = "adapter_model.safetensors"
    assert files.header(out / weights) == files.header(lora / weights)
    assert (out / "adapter_config.json").read_bytes() == (lora / "adapter_config.json").read_bytes()
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out)
    held = {name.replace(".default", ""): tensor for name, tensor in model.state_dict().items()}
    factors = {n: t for n, t in files.tensors(out).items() if ".lora_" in n}
    assert all((held[name].float().numpy() == factor.astype(numpy.float32)).all() for name, factor in factors.items())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_adapter_replayed_in_memory_is_the_one_written(
    family: str, checkpoint: Build, adapter: Build, tmp_path: Path
) -> None:
    """`--strength auto` judges the former, and takes it out of the shared base again."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    from weightguard.api.subject import open_subject
    from weightguard.rewrite import all_tensors
    from weightguard.statistics.loading import load_adapted, load_model

    base = checkpoint(family)
    lora = adapter(base, target_modules=GPT2 if family == "gpt2" else LINEARS)
    plan = wg.repair(lora, method="magnitude", target="factor", ratio="0.3", out=tmp_path / "OUT").plan
    subject = open_subject(str(lora))
    shared, ids = load_model(subject.model), torch.tensor([[6, 7, 8, 9]])
    with torch.no_grad():
        for _ in range(2):
            adapted = load_adapted(shared, subject.adapter, dict(all_tensors(plan, subject.sources("factor"))))
            found = adapted(ids).logits
            adapted.unload()
        wanted = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "OUT")(
            ids
        ).logits
        plain = AutoModelForCausalLM.from_pretrained(base)(ids).logits
        assert torch.equal(found, wanted) and not torch.equal(found, plain)
        assert torch.equal(shared(ids).logits, plain)


@pytest.mark.parametrize("kind", ["all targets", "patterns", "fan in, fan out", "rslora"])
def test_uniform_scaling_scales_b_alone(
    kind: str, checkpoint: Build, adapter: Build, tmp_path: Path, files: SimpleNamespace
) -> None:
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    family, _, settings = KINDS[kind]
    base = checkpoint(family)
    lora = adapter(base, **settings)
    wg.repair(lora, method="scale", strength="0.75", out=tmp_path / "OUT")
    before, after = files.tensors(lora), files.tensors(tmp_path / "OUT")
    assert all(files.same_bits(after[n], before[n] if "lora_A" in n else before[n] / 4) for n in before)

    ids = torch.tensor([[6, 7, 8, 9, 10]])
    wanted = AutoModelForCausalLM.from_pretrained(base)
    for name, update in products(base, lora, files)[0].items():
        wanted.get_parameter(name).data += torch.from_numpy(update / 4).float()
    found = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "OUT")
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, wanted(ids).logits, rtol=1e-4, atol=1e-5)
    wg.verify(tmp_path / "OUT", against=str(lora))


def test_scaling_the_update_into_the_base(small: tuple[Path, Path], tmp_path: Path, files: SimpleNamespace) -> None:
    base, lora = small
    wg.repair(lora, method="scale", target="delta", strength="0.75", out=tmp_path / "OUT")
    before, after = files.tensors(base), files.tensors(tmp_path / "OUT")
    for name, update in products(base, lora, files)[0].items():
        numpy.testing.assert_allclose(after[name], before[name] + update / 4, rtol=0, atol=2e-7)


@pytest.mark.parametrize("target", ["delta", "factor"])
def test_model_plus_adapter_is_the_adapter(
    target: str, small: tuple[Path, Path], data: Mapping[str, Path], tmp_path: Path, files: SimpleNamespace
) -> None:
    base, lora = small
    for reference, out in ((str(lora), "alone"), (f"{base}+{lora}", "both")):
        wg.repair(reference, harmful=str(data["harmful"]), target=target, threads=1, out=tmp_path / out)
    alone, both = files.digests(tmp_path / "alone"), files.digests(tmp_path / "both")
    differ = {name for name in alone if alone[name] != both[name]}
    assert set(alone) == set(both) and differ <= {"README.md", "weightguard.json"}
    said = [json.loads((tmp_path / out / "weightguard.json").read_text()) for out in ("alone", "both")]
    for key in ("method", "target", "options", "plan", "inputs", "statistics", "edits"):
        assert said[0][key] == said[1][key]
    assert said[0]["notes"] != said[1]["notes"]  # which tell where the base came from


def test_an_adapter_without_options_is_repaired_into_a_model(
    small: tuple[Path, Path], tmp_path: Path, files: SimpleNamespace
) -> None:
    base, lora = small
    result = wg.repair(lora, out=tmp_path / "OUT")
    assert result.plan.target == "delta"
    check_model(tmp_path / "OUT", base, files)


def test_scope_leaves_the_other_factors_alone(
    small: tuple[Path, Path], data: Mapping[str, Path], tmp_path: Path, files: SimpleNamespace
) -> None:
    _, lora = small
    wg.repair(lora, harmful=str(data["harmful"]), target="factor", scope="q,down", ratio="0.1", out=tmp_path / "OUT")
    before, after = files.raw(lora), files.raw(tmp_path / "OUT")
    assert {n for n in before if before[n] != after[n]} == {n for n in before if ".q_proj." in n or ".down_proj." in n}


def test_the_base_is_found_or_given(
    small: tuple[Path, Path], data: Mapping[str, Path], tmp_path: Path, files: SimpleNamespace, line: Any
) -> None:
    base, lora = small
    assert settings_of(lora)["base_model_name_or_path"] == str(base)
    moved = with_settings(lora, tmp_path / "moved", base_model_name_or_path=str(tmp_path / "nowhere"))
    code, said = line("repair", moved, "--method", "random", "-o", tmp_path / "OUT")
    assert code == 3 and "adapter_config.json names the base" in said and "--aligned" in said
    nameless = with_settings(lora, tmp_path / "nameless", base_model_name_or_path=None)
    code, said = line("repair", nameless, "--method", "random", "-o", tmp_path / "OUT")
    assert code == 3 and "base_model_name_or_path" in said
    wg.repair(moved, aligned=str(base), harmful=str(data["harmful"]), target="delta", out=tmp_path / "OUT")
    check_model(tmp_path / "OUT", base, files)


def with_settings(lora: Path, directory: Path, **changes: Any) -> Path:
    """A copy of an adapter with other settings in its adapter_config.json; None takes one out."""
    shutil.copytree(lora, directory)
    found = {key: value for key, value in {**settings_of(lora), **changes}.items() if value is not None}
    (directory / "adapter_config.json").write_text(json.dumps(found))
    return directory


@pytest.mark.parametrize("target", ["delta", "factor"])
def test_another_base_is_refused_by_module_and_shapes(
    target: str, small: tuple[Path, Path], checkpoint: Build, tmp_path: Path, line: Any
) -> None:
    _, lora = small
    wider = checkpoint("llama", intermediate_size=32)
    code, said = line("repair", f"{wider}+{lora}", "--method", "magnitude", "--target", target, "-o", tmp_path / "OUT")
    assert code == 3
    assert "mlp" in said and "24" in said and "32" in said and "another base" in said
    fewer = checkpoint("llama", num_hidden_layers=1)
    code, said = line("repair", f"{fewer}+{lora}", "--method", "magnitude", "--target", target, "-o", tmp_path / "OUT")
    assert code == 3 and "model.layers.1." in said
    assert not (tmp_path / "OUT").exists()


def test_the_kind_of_module_decides_on_the_orientation(
    checkpoint: Build, adapter: Build, data: Mapping[str, Path], tmp_path: Path, files: SimpleNamespace
) -> None:
    """peft saves fan_in_fan_out as the module it visits last has it: here lm_head, while all the others are Conv1D."""
    base = checkpoint("gpt2")
    lora = adapter(base, target_modules=["c_attn", "c_proj", "lm_head"], fan_in_fan_out=True)
    assert settings_of(lora)["fan_in_fan_out"] is False
    result = wg.repair(lora, harmful=str(data["harmful"]), target="factor", out=tmp_path / "OUT")
    assert result.plan.edits and not any("lm_head" in name for name in result.plan.edits)
    check_adapter(tmp_path / "OUT", base, lora, files)

    plain = adapter(base, target_modules=GPT2)
    odd = with_settings(plain, tmp_path / "odd", fan_in_fan_out=False)
    for source, out in ((plain, "a"), (odd, "b")):
        wg.repair(source, method="magnitude", ratio=0, out=tmp_path / out)
    assert files.raw(tmp_path / "a") == files.raw(tmp_path / "b")


def test_factors_that_peft_would_ignore_are_refused(small: tuple[Path, Path], tmp_path: Path, line: Any) -> None:
    _, lora = small
    for at, changes in enumerate(
        ({"target_modules": ["q_proj", "k_proj"]}, {"target_modules": LINEARS, "layers_to_transform": [0]})
    ):
        odd = with_settings(lora, tmp_path / str(at), **changes)
        code, said = line("repair", odd, "--method", "magnitude", "-o", tmp_path / "OUT")
        assert code == 3 and "peft would ignore it" in said
        assert ("layers.1." in said) == bool(at)


def test_a_head_that_is_tied_cannot_be_adapted(checkpoint: Build, adapter: Build, tmp_path: Path, line: Any) -> None:
    lora = adapter(checkpoint("llama", tied=True), target_modules=["q_proj", "lm_head"])
    code, said = line("repair", lora, "--method", "magnitude", "--target", "factor", "-o", tmp_path / "OUT")
    assert code == 6 and "lm_head" in said and "ties" in said


def test_modules_to_save_stay_in_an_adapter_and_stop_a_merge(
    checkpoint: Build, adapter: Build, data: Mapping[str, Path], tmp_path: Path, files: SimpleNamespace, line: Any
) -> None:
    base = checkpoint("llama")
    lora = adapter(base, target_modules=["q_proj"], modules_to_save=["lm_head"])
    saved = "base_model.model.lm_head.weight"
    for given in (["--target", "delta"], [], ["--target", "weight"]):
        code, said = line("repair", lora, "--method", "magnitude", *given, "-o", tmp_path / "OUT")
        assert code == 6 and saved in said
    assert not (tmp_path / "OUT").exists()
    result = wg.repair(lora, harmful=str(data["harmful"]), target="factor", out=tmp_path / "OUT")
    assert any(saved in note for note in result.manifest.data["notes"])
    assert saved in (tmp_path / "OUT" / "README.md").read_text()
    before, after = files.raw(lora), files.raw(tmp_path / "OUT")
    assert before[saved] == after[saved]
    assert {name for name in before if before[name] != after[name]} == {name for name in before if "lora_" in name}
    check_adapter(tmp_path / "OUT", base, lora, files)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"target_modules": ["q_proj"], "use_dora": True}, "use_dora"),
        ({"target_modules": ["q_proj"], "lora_bias": True}, "lora_bias"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "lora_embedding"),
        ({"target_modules": ["q_proj"], "init_lora_weights": "pissa"}, "pissa"),
        ({"target_modules": ["q_proj"], "init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"target_modules": ["q_proj"], "init_lora_weights": "olora"}, "olora"),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [3, 4]}, "trainable_token_indices"),
        ({"target_modules": ["q_proj"], "target_parameters": ["model.norm.weight"]}, "target_parameters"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("target", ["delta", "factor"])
def test_what_stock_peft_would_compute_otherwise_is_refused(
    target: str, settings: dict[str, Any], word: str, checkpoint: Build, adapter: Build, tmp_path: Path, line: Any
) -> None:
    base = checkpoint("qwen2")  # has biases, which lora_bias needs
    known = {k: v for k, v in settings.items() if k != "target_parameters"}
    lora = adapter(base, **known)
    if known != settings:  # peft wants a real one to build it; the config alone decides here
        lora = with_settings(lora, tmp_path / "odd", **settings)
    code, said = line("repair", lora, "--method", "magnitude", "--target", target, "-o", tmp_path / "OUT")
    assert code == 6 and word in said
    assert not (tmp_path / "OUT").exists()


VALUES: list[Any] = [
    None, True, 5, "", "zz", [], ["q_proj"], [5], {"a": 1}, "q_proj", ".*q_proj", "all-linear", ["layers"],
]  # fmt: skip
KEYS = ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern", "bias", "init_lora_weights")
ODD: list[dict[str, Any]] = [
    *({key: value} for key in KEYS for value in VALUES),
    *({"layers_to_transform": value} for value in (None, 0, 1, [], [0], [0, 1], "0", ["0"], 1.5)),
    *({"layers_to_transform": [0, 1], "layers_pattern": value} for value in (None, "", "layers", ["layers"], "zz", 5)),
    *({"lora_dropout": value} for value in (0, 1, 0.5, 2, None, "x")),
    {"target_modules": ".*", "layers_to_transform": 0}, {"bias": "all"}, {"init_lora_weights": "gaussian"},
    *({"init_lora_weights": value} for value in ("EVA", "eva", "Gaussian", "MICA", "mica", "Orthogonal", "orthogonal")),
    *({key: value} for key in ("rank_pattern", "alpha_pattern") for value in (None, [], {}, "x", 5)),
    *({"task_type": value} for value in (None, "FOO", 5, [], *("CAUSAL_LM", "SEQ_CLS", "FEATURE_EXTRACTION"))),
    {"target_modules": "ALL-LINEAR"},
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_what_stock_peft_cannot_load_or_leaves_out_is_refused(
    checkpoint: Build, adapter: Build, tmp_path: Path
) -> None:
    """With peft itself as the judge of every value; what it loads by accident may be refused too, but nothing it writes."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = checkpoint("llama")
    lora = adapter(base, target_modules=["q_proj", "v_proj"])
    held = {f"base_model.model.model.layers.{i}.self_attn.{x}_proj.lora_A.weight" for i in range(2) for x in "qv"}
    accepted, loaded = [], []
    for number, settings in enumerate(ODD):
        odd = shutil.copytree(lora, tmp_path / str(number))
        (odd / "adapter_config.json").write_text(json.dumps({**settings_of(lora), **settings}))
        accepted.append(not any("adapter_config.json" in problem for problem in wg.inspect(str(odd)).problems))
        try:
            model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), odd)
        except Exception:
            loaded.append(False)
        else:
            loaded.append(held <= {name.replace(".default", "") for name in model.state_dict()})
    wrong = [case for case, ours, theirs in zip(ODD, accepted, loaded, strict=True) if ours and not theirs]
    assert wrong == []
    assert sum(accepted) >= 24 and accepted.count(False) >= 60
