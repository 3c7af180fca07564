"""Every architecture of the table through every command, from what stock transformers and peft wrote to what they load.

Run as a program this file prints the table of what is supported, as docs/architectures.md holds it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

import weightguard as wg

Names = dict[str, list[str]]
DOCUMENT = Path(__file__).parents[2] / "docs" / "architectures.md"
CLOSE = 5e-6
QKVO = [f"self_attn.{x}_proj" for x in "qkvo"]
GATED = ["gate_proj", "up_proj", "down_proj"]
LLAMA = [*QKVO, *(f"mlp.{x}" for x in GATED)]
FUSED_MLP = [*QKVO, "mlp.gate_up_proj", "mlp.down_proj"]
FOUR_H = ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]
BLOOM = ["self_attention.query_key_value", "self_attention.dense", *FOUR_H]
LATENT = [f"self_attn.{x}" for x in ("kv_a_proj_with_mqa", "kv_b_proj", "o_proj")]
EXPERTS = [f"mlp.experts.{e}.{x}" for e in range(4) for x in GATED]
DEEPSEEK = [*EXPERTS, *(f"mlp.shared_experts.{x}" for x in GATED)]
QWEN = [*EXPERTS, *(f"mlp.shared_expert.{x}" for x in GATED)]
PACKED = [f"experts.{x}#{e}" for e in range(4) for x in ("gate_up_proj", "down_proj")]
# On-disk paths of the decoder linears below layer 0 and layer 1 of a pico model, written down by hand; the modules that
# an adapter is put on; and what people call the models.
KNOWN: dict[str, tuple[list[str], list[str], str, str]] = {
    "llama": (LLAMA, LLAMA, "q_proj v_proj down_proj", "Llama 1 to 3, Yi, Vicuna, SmolLM 1 and 2"),
    "mistral": (LLAMA, LLAMA, "q_proj o_proj", "Mistral"),
    "qwen2": (LLAMA, LLAMA, "q_proj v_proj", "Qwen 1.5, 2, 2.5"),
    "qwen3": (LLAMA, LLAMA, "q_proj v_proj", "Qwen 3"),
    "gemma": (LLAMA, LLAMA, "q_proj v_proj", "Gemma"),
    "gemma2": (LLAMA, LLAMA, "q_proj v_proj", "Gemma 2"),
    "gemma3_text": (LLAMA, LLAMA, "q_proj v_proj", "Gemma 3, text"),
    "phi3": (
        p := ["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"],
        p,
        "qkv_proj gate_up_proj",
        "Phi-3, Phi-4",
    ),
    "gpt2": (
        p := ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
        p,
        "c_attn c_fc",
        "GPT-2",
    ),
    "cohere": (LLAMA, LLAMA, "q_proj v_proj", "Command R"),
    "cohere2": (LLAMA, LLAMA, "q_proj v_proj", "Command R7B, Command A"),
    "exaone4": (LLAMA, LLAMA, "q_proj v_proj", "EXAONE 4"),
    "granite": (LLAMA, LLAMA, "q_proj v_proj", "Granite 3"),
    "olmo": (LLAMA, LLAMA, "q_proj v_proj", "OLMo"),
    "olmo2": (LLAMA, LLAMA, "q_proj v_proj", "OLMo 2"),
    "smollm3": (LLAMA, LLAMA, "q_proj v_proj", "SmolLM 3"),
    "stablelm": (LLAMA, LLAMA, "q_proj v_proj", "StableLM"),
    "glm": (FUSED_MLP, FUSED_MLP, "q_proj gate_up_proj", "GLM-4"),
    "glm4": (FUSED_MLP, FUSED_MLP, "q_proj gate_up_proj", "GLM-4-0414"),
    "gpt_neox": (
        p := ["attention.query_key_value", "attention.dense", *FOUR_H],
        p,
        "query_key_value",
        "Pythia, GPT-NeoX",
    ),
    "opt": (p := [*(f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")), "fc1", "fc2"], p, "q_proj fc2", "OPT"),
    "falcon": (BLOOM, BLOOM, "query_key_value", "Falcon 7B, 40B"),
    "bloom": (BLOOM, BLOOM, "query_key_value dense_4h_to_h", "BLOOM"),
    "phi": (
        p := [*QKVO[:3], "self_attn.dense", "mlp.fc1", "mlp.fc2"],
        p,
        "q_proj fc1",
        "Phi-1, Phi-2",
    ),
    "starcoder2": (p := [*QKVO, "mlp.c_fc", "mlp.c_proj"], p, "q_proj c_fc", "StarCoder 2"),
    "mixtral": (
        p := [*QKVO, *(f"block_sparse_moe.experts.{e}.w{w}" for e in range(4) for w in (1, 2, 3))],
        p,
        "q_proj v_proj",
        "Mixtral",
    ),
    "qwen2_moe": (LLAMA, [*QKVO, *QWEN], "q_proj v_proj", "Qwen 1.5 MoE, Qwen 2 57B-A14B"),
    "qwen3_moe": (p := [*QKVO, *EXPERTS], p, "q_proj v_proj", "Qwen 3 MoE"),
    "qwen3_next": (
        [*(f"linear_attn.{x}" for x in ("in_proj_qkvz", "in_proj_ba", "out_proj")), *QWEN],
        [*QKVO, *QWEN],
        "q_proj in_proj_qkvz",
        "Qwen 3 Next",
    ),
    "ministral3": (LLAMA, LLAMA, "q_proj v_proj", "Ministral 3, text"),
    "olmoe": (p, p, "q_proj v_proj", "OLMoE"),
    "deepseek_v2": (
        [QKVO[0], *LATENT, *(f"mlp.{x}" for x in GATED)],
        [QKVO[0], *LATENT, *DEEPSEEK],
        "q_proj kv_b_proj",
        "DeepSeek V2",
    ),
    "deepseek_v3": (
        [*(latent := ["self_attn.q_a_proj", "self_attn.q_b_proj", *LATENT]), *(f"mlp.{x}" for x in GATED)],
        [*latent, *DEEPSEEK],
        "q_b_proj kv_b_proj",
        "DeepSeek V3, R1",
    ),
    "granitemoe": (
        p := [*QKVO, *(f"block_sparse_moe.{x}_linear.weight#{e}" for e in range(4) for x in ("input", "output"))],
        p,
        "q_proj v_proj",
        "Granite 3 MoE",
    ),
    "gpt_oss": (p := [*QKVO, *(f"mlp.{x}" for x in PACKED)], p, "q_proj v_proj", "gpt-oss, as bf16"),
    "llama4_text": (
        [*QKVO, *(f"feed_forward.{x}" for x in GATED)],
        [*QKVO, *(f"feed_forward.{x}" for x in PACKED), *(f"feed_forward.shared_expert.{x}" for x in GATED)],
        "q_proj v_proj",
        "Llama 4, text",
    ),
}
BLOCKS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers", "opt": "model.decoder.layers",
          "falcon": "transformer.h", "bloom": "transformer.h"}  # fmt: skip
# Models that see: the language model in them, its block on disk and in memory, names.
LANGUAGE = "language_model.model.layers"
SEEING: dict[str, tuple[str, str, str, str]] = {
    "gemma3": ("gemma3_text", LANGUAGE, "model.language_model.layers", "Gemma 3"),
    "llama4": ("llama4_text", LANGUAGE, "language_model.model.layers", "Llama 4"),
    "llava": ("llama", LANGUAGE, "model.language_model.layers", "LLaVA 1.5"),
    "mistral3": ("mistral", LANGUAGE, "model.language_model.layers", "Mistral Small 3.1"),
    "qwen2_vl": ("qwen2", "model.layers", "model.language_model.layers", "Qwen2-VL"),
    "qwen2_5_vl": ("qwen2", "model.layers", "model.language_model.layers", "Qwen2.5-VL"),
}
for _family, (_inner, _block, _, _title) in SEEING.items():
    KNOWN[_family], BLOCKS[_family] = (*KNOWN[_inner][:3], _title), _block
# One of each way of storing things; the rest with `-m full`.
SAMPLE = ("gpt_neox", "opt", "mixtral", "deepseek_v3", "gpt_oss", "llama4")
EVERY = [family if family in SAMPLE else pytest.param(family, marks=pytest.mark.full) for family in KNOWN]
every = pytest.mark.parametrize("family", EVERY)


def linears(family: str) -> set[str]:
    """On-disk names of the decoder linears."""
    named = itertools.chain(*([f"{layer}.{path}" for path in KNOWN[family][layer]] for layer in (0, 1)))
    whole = {f"{BLOCKS.get(family, 'model.layers')}.{name}" for name in named}
    return {name if "#" in name else f"{name}.weight" for name in whole}


def core(family: str) -> str:
    """The family of the language model."""
    return SEEING[family][0] if family in SEEING else family


def on_disk(family: str, path: str) -> str:
    """The name in the files for a module of the running model."""
    return path.replace(SEEING[family][2], SEEING[family][1]) if family in SEEING else path


def auto(family: str) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if family in SEEING else AutoModelForCausalLM


def matrices(directory: Path, files: SimpleNamespace) -> dict[str, numpy.ndarray]:
    """Every tensor as stored, and in place of packed ones the experts in them."""
    found = {}
    for name, array in files.tensors(directory).items():
        packed = array.ndim == 3 and ("experts." in name or "_linear.weight" in name)
        found |= {f"{name}#{e}": part for e, part in enumerate(array)} if packed else {name: array}
    return found


def test_the_table_covers_every_family(families: tuple[str, ...], wrappers: tuple[str, ...]) -> None:
    from weightguard.checkpoint.naming import FAMILIES, WRAPPERS

    assert set(families) == set(FAMILIES) and set(wrappers) == set(WRAPPERS) == set(SEEING)
    assert set(KNOWN) == {*FAMILIES, *WRAPPERS}


@every
def test_inspect(family: str, checkpoint: Callable[..., Path]) -> None:
    found = wg.inspect(str(checkpoint(family)))
    assert {t.name for t in found.tensors if t.role} == linears(family) and not found.problems
    assert {t.name: t.layer for t in found.tensors if t.role} == {
        name: int(name.split(".layers." if ".layers." in name else ".h.")[1].split(".")[0]) for name in linears(family)
    }
    experts = {t.role for t in found.tensors if t.role and ".experts." in t.name and ".shared" not in t.name}
    assert all(role.startswith("expert_") for role in experts)
    stored = json.loads(next(checkpoint(family).glob("*.safetensors")).read_bytes()[8:].split(b"}}", 1)[0] + b"}}")
    assert found.nbytes == max(t["data_offsets"][1] for name, t in stored.items() if name != "__metadata__")


ONLY_EXPERTS = ("qwen3_moe", "qwen3_next")  # in every layer of the pico model


@every
def test_a_config_of_another_model(family: str, checkpoint: Callable[..., Path]) -> None:
    """Each size alone doubled contradicts some tensor, which is said with the key, whatever its name is here."""
    from weightguard.checkpoint import decoder_linears, family_of, misfits, open_checkpoint, resolve
    from weightguard.checkpoint.naming import language_config

    opened = open_checkpoint(resolve(str(checkpoint(family))))
    linears = decoder_linears(opened.config, opened.tensors)
    for key in ("n_embd", "hidden_size", "intermediate_size", "moe_intermediate_size", "ffn_dim", "vocab_size"):
        config = json.loads(json.dumps(opened.config))
        said = language_config(config)
        idle = (*family_of(config).ignores, *(["intermediate_size"] if family in ONLY_EXPERTS else []))
        if key in said and key not in idle:
            said[key] *= 2
            found = [str(misfit) for misfit in misfits(config, linears, opened.tensors)]
            assert found and all(f"({key} {said[key]})" in each or "twice" in each for each in found), key


def rows() -> Iterator[tuple[list[int], list[bool]]]:
    """Ids and which of them count, of different lengths."""
    random = numpy.random.default_rng(5)
    for length in (1, 17, 9, 24, 6, 13):
        yield random.integers(1, 64, length).tolist(), [at >= length // 2 for at in range(length)]


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    """The rows as a pre-tokenised file, padded on the right with an id that is not the padding's."""
    from safetensors.numpy import save_file

    arrays = {
        name: numpy.full((6, 24), fill) for name, fill in (("input_ids", 7), ("attention_mask", 0), ("labels", -100))
    }
    for at, (row, counted) in enumerate(rows()):
        arrays["input_ids"][at, : len(row)], arrays["attention_mask"][at, : len(row)] = row, 1
        arrays["labels"][at, : len(row)] = numpy.where(counted, row, -100)
    save_file(arrays, tmp_path / "rows.safetensors")
    return tmp_path / "rows.safetensors"


@every
def test_stats(family: str, checkpoint: Callable[..., Path], ids: Path, files: SimpleNamespace) -> None:
    """Norms equal those of hooks on every linear and of a loop over every token of every expert, in float64."""
    directory = checkpoint(family)
    for tokens in ("all", "response"):
        found = wg.stats(directory, data=str(ids), tokens=tokens, threads=1)
        wanted, total = naive_sums(family, directory, files, tokens == "all")
        assert set(found.sums) == set(wanted) == linears(family) and found.tokens == total
        for name, sums in wanted.items():
            assert numpy.abs(numpy.sqrt(found.sums[name]) - numpy.sqrt(sums)).max() <= CLOSE * numpy.sqrt(sums.max()), (
                name
            )
        assert set(found.unseen) == {name for name, sums in wanted.items() if not sums.any()}


def naive_sums(
    family: str, directory: Path, files: SimpleNamespace, everything: bool
) -> tuple[dict[str, numpy.ndarray], int]:
    """Σ x² by on-disk name, and the tokens counted: one row a pass, one expert's token at a time."""
    import torch
    from transformers.pytorch_utils import Conv1D

    model = auto(family).from_pretrained(directory, dtype=torch.float64, experts_implementation="eager").eval()
    stored = {name: torch.tensor(each, dtype=torch.float64) for name, each in matrices(directory, files).items()}
    counted: list[bool] = []
    names = linears(family)
    sums = {n: torch.zeros(stored[n].shape[0 if _is_transposed(family, n) else 1], dtype=torch.float64) for n in names}

    def dense(name: str) -> Callable[..., None]:
        def add(_module: Any, given: Any) -> None:
            sums[name] += (given[0].reshape(len(counted), -1)[torch.tensor(counted)] ** 2).sum(0)

        return add

    def routed(layer: str) -> Callable[..., None]:
        def add(_module: Any, given: Any) -> None:
            for at, x, experts in _sent(family, layer, given, stored):
                for expert in experts if counted[at] else []:
                    inward, outward, middle = _expert(family, layer, expert, x[expert], stored)
                    for name in inward:
                        sums[name] += x[expert] ** 2
                    sums[outward] += middle**2

        return add

    for path, module in model.named_modules():
        stored_path = on_disk(family, path)
        if isinstance(module, torch.nn.Linear | Conv1D) and f"{stored_path}.weight" in names:
            module.register_forward_pre_hook(dense(f"{stored_path}.weight"))
        if path.endswith("feed_forward" if core(family) == "llama4_text" else ".experts"):
            layer = path.split(".layers.")[1].split(".")[0]
            if any(f".layers.{layer}." in name and ("experts." in name or "#" in name) for name in names):
                module.register_forward_pre_hook(routed(layer))
    total = 0
    with torch.no_grad():
        for row, chosen in rows():
            counted[:] = [True] * len(row) if everything else chosen
            total += sum(counted)
            model(input_ids=torch.tensor([row]))
    return {name: each.numpy() for name, each in sums.items()}, total


def _is_transposed(family: str, name: str) -> bool:
    return family == "gpt2" or (core(family) in ("gpt_oss", "llama4_text") and "#" in name)


def _sent(
    family: str, layer: str, given: Any, stored: Mapping[str, Any]
) -> Iterator[tuple[int, dict[int, Any], list[int]]]:
    """Every token: its place, what it brings to each of its experts, and which these are."""
    import torch

    if core(family) != "llama4_text":
        for at, x in enumerate(given[0].reshape(-1, given[0].shape[-1])):
            chosen = given[1].reshape(-1, given[1].shape[-1])[at].tolist()
            yield at, dict.fromkeys(chosen, x), chosen
        return
    router = stored[f"{BLOCKS.get(family, 'model.layers')}.{layer}.feed_forward.router.weight"]
    for at, x in enumerate(given[0].reshape(-1, given[0].shape[-1])):
        scores = router @ x
        best = int(scores.argmax())
        yield at, {best: x * torch.sigmoid(scores[best])}, [best]


def _expert(family: str, layer: str, expert: int, x: Any, stored: Mapping[str, Any]) -> tuple[list[str], str, Any]:
    """Names of what x goes into, of what comes after, and the input of that, by the formula of the paper or the card."""
    import torch

    silu = torch.nn.functional.silu
    place, family = f"{BLOCKS.get(family, 'model.layers')}.{layer}", core(family)
    if family == "granitemoe":
        first = f"{place}.block_sparse_moe.input_linear.weight#{expert}"
        gate, up = (stored[first] @ x).chunk(2)
        return [first], f"{place}.block_sparse_moe.output_linear.weight#{expert}", silu(gate) * up
    if family in ("gpt_oss", "llama4_text"):
        part = f"{place}.{'mlp' if family == 'gpt_oss' else 'feed_forward'}.experts"
        first, found = f"{part}.gate_up_proj#{expert}", x @ stored[f"{part}.gate_up_proj#{expert}"]
        if family == "llama4_text":
            gate, up = found.chunk(2)
            return [first], f"{part}.down_proj#{expert}", silu(gate) * up
        found = found + stored[f"{part}.gate_up_proj_bias"][expert]
        gate, up = found[::2].clamp(max=7.0), found[1::2].clamp(-7.0, 7.0)
        return [first], f"{part}.down_proj#{expert}", (up + 1) * gate * torch.sigmoid(1.702 * gate)
    if family == "mixtral":
        names = [f"{place}.block_sparse_moe.experts.{expert}.w{w}.weight" for w in (1, 3, 2)]
    else:
        names = [f"{place}.mlp.experts.{expert}.{w}.weight" for w in GATED]
    return names[:2], names[2], silu(stored[names[0]] @ x) * (stored[names[1]] @ x)


# Column of the table -> method, target, options. "weight" needs no aligned model.
REPAIRS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "antidote, delta": ("antidote", "delta", {"ratio": "0.25"}),
    "antidote, weight": ("antidote", "weight", {"ratio": "0.1", "group": "row"}),
    "magnitude": ("magnitude", "delta", {"ratio": "0.1", "group": "matrix"}),
    "random": ("random", "weight", {"ratio": "0.1", "group": "matrix"}),
}


@every
def test_repairs(
    family: str,
    checkpoint: Callable[..., Path],
    data: Mapping[str, Path],
    tmp_path: Path,
    files: SimpleNamespace,
    naive: SimpleNamespace,
    input_is_kept: Callable[..., None],
) -> None:
    model, aligned = checkpoint(family), checkpoint(family, kind="aligned")
    input_is_kept(model, aligned)
    norms = wg.stats(model, data=str(data["harmful"]), out=tmp_path / "S", threads=1)
    for column, (method, target, options) in REPAIRS.items():
        out = tmp_path / column
        given = {"stats": tmp_path / "S"} if method == "antidote" else {}
        reference = {"aligned": str(aligned)} if target == "delta" else {}
        result = wg.repair(model, method=method, target=target, out=out, **options, **given, **reference)
        known = linears(family) - set(norms.unseen if method == "antidote" else ())
        assert set(result.plan.edits) == known
        before, after, origin = (matrices(each, files) for each in (model, out, aligned))
        assert {n for n in before if (before[n] != after[n]).any()} == known, column
        if method != "random":
            _check_entries(family, (method, target), (before, after, origin), norms, options, naive)
        found = wg.verify(out, against=str(model)).verified
        assert found.edited == len(known) and found.changed_recounted == sum(
            int((before[n] != after[n]).sum()) for n in known
        )
        _check_header(model, out, files)
    _check_loads(family, out := tmp_path / "antidote, delta", files)
    again = wg.repair(model, aligned=str(aligned), stats=tmp_path / "S", ratio="0.25", dry_run=True)
    _check_replayed(family, model, aligned, out, again.plan)


def _check_entries(
    family: str, kind: tuple[str, str], sides: tuple[Any, Any, Any], norms: Any, options: Any, naive: SimpleNamespace
) -> None:
    """Entry by entry, in logical order: the top of the scores has the aligned value or zero, the rest is as it was."""
    before, after, origin = sides
    names = [n for n in linears(family) if kind[0] != "antidote" or n not in norms.unseen]
    turn = {n: (lambda x: x.T) if _is_transposed(family, n) else (lambda x: x) for n in names}
    scored = {n: turn[n](before[n] - origin[n] if kind[1] == "delta" else before[n]) for n in names}
    factor = {n: norms.norms(n) if kind[0] == "antidote" else numpy.float32(1) for n in names}
    scores = {n: numpy.abs(scored[n]) * factor[n] for n in names}
    chosen = naive.masks(scores, options["ratio"], options.get("group", "row"), "exact")
    for n in names:
        replaced = turn[n](origin[n]) if kind[1] == "delta" else numpy.zeros_like(scored[n])
        assert (turn[n](after[n]) == numpy.where(chosen[n], replaced, turn[n](before[n]))).all(), n


def _check_header(model: Path, out: Path, files: SimpleNamespace) -> None:
    for shard in model.glob("*.safetensors"):
        assert files.header(out / shard.name) == files.header(shard)


def _check_loads(family: str, out: Path, files: SimpleNamespace) -> None:
    """Stock transformers finds everything it needs, and what it saves again is what we wrote."""
    import torch

    loaded, said = auto(family).from_pretrained(out, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"] and not said["mismatched_keys"]
    loaded.save_pretrained(out.parent / "again")
    again, written = files.tensors(out.parent / "again"), files.tensors(out)
    assert set(again) == set(written) and all((again[n] == array).all() for n, array in written.items())
    ids = torch.tensor([[6, 7, 8, 9]])
    grown = loaded.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, min_new_tokens=3, do_sample=False
    )
    assert grown.shape == (1, 7)


def _check_replayed(family: str, model: Path, aligned: Path, out: Path, plan: Any) -> None:
    """The model that `--strength auto` judges in memory computes what the one on disk computes."""
    import torch

    from weightguard.api.subject import open_subject
    from weightguard.rewrite import all_tensors
    from weightguard.statistics.loading import load_model

    subject = open_subject(str(model), str(aligned))
    replayed = load_model(subject.model, state_dict=dict(all_tensors(plan, subject.sources("delta"))))
    ids = torch.tensor([[6, 7, 8, 9, 10, 11, 12, 13, 14, 15]])
    with torch.no_grad():
        wanted = auto(family).from_pretrained(out, experts_implementation="eager")(ids).logits
        assert torch.equal(replayed(ids).logits, wanted)


@every
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_safe_lora_on_an_adapter(
    family: str, checkpoint: Callable[..., Path], adapter: Callable[..., Path], tmp_path: Path, files: SimpleNamespace
) -> None:
    """lora_B of every module becomes C·B, and peft loads what comes out over the stock base."""
    import peft
    import torch

    base, before = checkpoint(family, kind="aligned"), checkpoint(family)
    lora = adapter(base, target_modules=adapted_modules(family), fan_in_fan_out=family == "gpt2")
    result = wg.repair(
        lora, method="safe-lora", unaligned=str(before), number=_count(lora, files), out=tmp_path / "OUT"
    )
    wg.verify(tmp_path / "OUT", against=str(lora))
    sides = [matrices(each, files) for each in (base, before)]
    given, found = files.tensors(lora), files.tensors(tmp_path / "OUT")
    assert set(result.plan.edits) == {name for name in given if ".lora_B." in name}
    for name in result.plan.edits:
        tensor = on_disk(family, name.removeprefix("base_model.model.").replace(".lora_B.", "."))
        v = (sides[0][tensor].astype(float) - sides[1][tensor]).T if family == "gpt2" else (
            sides[0][tensor].astype(float) - sides[1][tensor])  # fmt: skip
        wanted = v @ (v.T @ given[name].astype(float)) / numpy.linalg.norm(v)
        assert numpy.abs(found[name] - wanted).max() <= 1e-6 * numpy.abs(wanted).max()
    model = peft.PeftModel.from_pretrained(auto(family).from_pretrained(base), tmp_path / "OUT").eval()
    held = {n.replace(".default", ""): p for n, p in model.named_parameters() if ".lora_" in n}
    assert set(held) == set(found) and all((held[n].detach().numpy() == found[n]).all() for n in found)
    ids = torch.tensor([[6, 7, 8, 9]])
    assert model.generate(input_ids=ids, max_new_tokens=3, min_new_tokens=3, do_sample=False).shape == (1, 7)


def adapted_modules(family: str) -> list[str] | str:
    """What peft is told: names, or of a model that sees a pattern that leaves the tower out."""
    names = KNOWN[family][2].split()
    return rf".*language_model.*\.({'|'.join(names)})" if family in SEEING else names


def _count(lora: Path, files: SimpleNamespace) -> int:
    return sum(".lora_B." in name for name in files.tensors(lora))


@every
def test_neurons(family: str, checkpoint: Callable[..., Path], data: Mapping[str, Path], tmp_path: Path) -> None:
    """Neurons lie in every linear that the rows reach, and `restore` puts back what they mark."""
    model, aligned = checkpoint(family), checkpoint(family, kind="aligned")
    norms = wg.stats(aligned, data=str(data["harmful"]), tokens="response")
    given = {"safety": str(data["harmful"]), "top_utility": "0", "top_safety": "0.1"}
    found = wg.neurons(aligned, out=tmp_path / "N", **given)
    assert set(found.neurons.parts) == linears(family) - set(norms.unseen)
    wg.repair(model, method="restore", aligned=str(aligned), neurons=tmp_path / "N", out=tmp_path / "OUT")
    assert wg.verify(tmp_path / "OUT", against=str(model)).verified.edited == len(found.neurons.parts)


# Column of the table -> the test behind it; every one runs for every architecture.
CHECKS: dict[str, Callable[..., None]] = {
    "inspect": test_inspect,
    "stats": test_stats,
    "antidote, magnitude, random": test_repairs,
    "verify, reload, generate": test_repairs,
    "safe-lora on an adapter": test_safe_lora_on_an_adapter,
    "neurons, restore": test_neurons,
}


def table() -> str:
    """What is supported, in Markdown: a line for each architecture, a column for each check, and the roles of --scope."""
    from weightguard.checkpoint.naming import family_of

    heading = ["model_type", "models", *CHECKS, "roles"]
    lines = [heading, ["---"] * len(heading)]
    for family in sorted(KNOWN):
        roles = family_of({"model_type": family}).linears
        checked = [_covered(test, family) for test in CHECKS.values()]
        lines.append([f"`{family}`", KNOWN[family][3], *checked, " ".join(roles)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _covered(test: Any, family: str) -> str:
    """ "yes" when the test runs for the architecture: read off its own parameters."""
    given = next(mark.args[1] for mark in test.pytestmark if mark.name == "parametrize")
    return "yes" if family in {getattr(each, "values", (each,))[0] for each in given} else "no"


def test_the_document_holds_the_table() -> None:
    assert table() in DOCUMENT.read_text(encoding="utf-8"), f"write the output of {Path(__file__).name} into it"


if __name__ == "__main__":
    print(table(), end="")
