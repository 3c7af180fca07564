"""What an adapter's config says against its tensors and its base, and regular expressions that could run for ever."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightguard.checkpoint import Checkpoint, Resolved, lora_pairs, open_checkpoint
from weightguard.checkpoint.adapter import base_tensors
from weightguard.checkpoint.patterns import is_bounded
from weightguard.errors import CheckpointError, MismatchError, UnsupportedError, WeightguardError

Write = Callable[..., Path]
Q, V = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
F = "adapter_model.safetensors: "
J = "adapter_config.json: "
A_Q, B_Q = f"base_model.model.{Q}.lora_A.weight", f"base_model.model.{Q}.lora_B.weight"


def zeros(*shape: int) -> tuple[str, tuple[int, ...], bytes]:
    return "F32", shape, bytes(4 * math.prod(shape))


def factors(module: str = Q, rank: int = 2, into: int = 6, out: int = 4, prefix: str = "base_model.model.") -> dict:
    return {f"{prefix}{module}.lora_A.weight": zeros(rank, into), f"{prefix}{module}.lora_B.weight": zeros(out, rank)}


def opened(write: Write, tensors: dict[str, Any] | None = None, **changes: Any) -> Checkpoint:
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value != "-"}
    files = {"adapter_model.safetensors": factors() if tensors is None else tensors, "adapter_config.json": config}
    return open_checkpoint(Resolved(write("adapter", files), None, None, "ADAPTER"))


def base(write: Write, tensors: dict[str, Any] | None = None) -> Checkpoint:
    files = {
        "model.safetensors": {f"{Q}.weight": zeros(4, 6)} if tensors is None else tensors,
        "config.json": {"model_type": "llama", "num_hidden_layers": 1},
    }
    return open_checkpoint(Resolved(write("base", files), None, None, "BASE"))


def unsupported(key: str) -> tuple[type, str]:
    return UnsupportedError, f"{J}{key} is not supported; merge the adapter with peft first"


CONFIGS: dict[str, tuple[dict[str, Any], type, str]] = {
    "another kind": ({"peft_type": "IA3"}, UnsupportedError, f"{J}peft_type 'IA3' is not supported, only LORA"),
    "no kind": ({"peft_type": "-"}, UnsupportedError, f"{J}peft_type None is not supported, only LORA"),
    "DoRA": ({"use_dora": True}, *unsupported("use_dora")),
    "biases of LoRA": ({"lora_bias": True}, *unsupported("lora_bias")),
    "layers used twice": ({"layer_replication": [[0, 1]]}, *unsupported("layer_replication")),
    "parameters as targets": ({"target_parameters": ["x"]}, *unsupported("target_parameters")),
    "a start that rewrites the base": (
        {"init_lora_weights": "pissa_niter_4"},
        UnsupportedError,
        f"{J}init_lora_weights 'pissa_niter_4' rewrites the base on loading; convert it to plain LoRA first",
    ),
    **{
        f"{key} that is {json.dumps(value)}": (
            {key: value},
            CheckpointError,
            f"{J}{key} is {json.dumps(value)}; {words}",
        )
        for key, values, words in [
            ("target_modules", [5, True, {"q_proj": 1}, "", [5]], "it must be null, a list of names, or one pattern"),
            ("exclude_modules", [5, False, [None]], "it must be null, a list of names, or one pattern"),
            ("modules_to_save", [5, "lm_head", [5]], "it must be null or a list of names"),
            ("layers_to_transform", ["1", [True], 1.5], "it must be null, a whole number, or a list of them"),
            ("layers_pattern", [5, {}], "it must be null, a list of names, or one pattern"),
            ("layers_pattern", ["zz", ["layers"]], "without layers_to_transform it has no meaning"),
            ("bias", ["zzz", None, True], "it must be none, all or lora_only"),
            (
                "init_lora_weights",
                [5, "zz", ["gaussian"]],
                "it must be true, false or one of gaussian, eva, orthogonal, mica",
            ),
            ("use_rslora", ["false", 0], "it must be true or false"),
            ("lora_dropout", ["0", None, 1.5, -1], "it must be a number from 0 to 1"),
        ]
        for value in values
    },
    "layers of a pattern": (
        {"target_modules": ".*q_proj", "layers_to_transform": [0]},
        CheckpointError,
        f"{J}layers_to_transform is [0]; target_modules must be a list beside it, not a pattern",
    ),
    "rank of zero": ({"r": 0}, CheckpointError, f"{J}rank 0 for {Q}, but {A_Q!r} has rank 2"),
    "rank of another": ({"r": 4}, CheckpointError, f"{J}rank 4 for {Q}, but {A_Q!r} has rank 2"),
    "no rank": ({"r": "-"}, CheckpointError, f"{J}rank None for {Q}, but {A_Q!r} has rank 2"),
    "rank of text": ({"r": "2 "}, CheckpointError, f"{J}rank '2 ' for {Q}, but {A_Q!r} has rank 2"),
    "rank of a pattern": (
        {"rank_pattern": {"q_proj": 8}},
        CheckpointError,
        f"{J}rank 8 for {Q}, but {A_Q!r} has rank 2",
    ),
    "no alpha": ({"lora_alpha": "-"}, CheckpointError, f"{J}lora_alpha None for {Q} is not a usable number"),
    "alpha of text": ({"lora_alpha": "4 "}, CheckpointError, f"{J}lora_alpha 4  for {Q} is not a usable number"),
    "alpha that is true": ({"lora_alpha": True}, CheckpointError, f"{J}lora_alpha True for {Q} is not a usable number"),
    "alpha beyond floats": (
        {"lora_alpha": 10**400},
        CheckpointError,
        f"{J}lora_alpha {'1' + '0' * 39} for {Q} is not a usable number",
    ),
    "alpha of a pattern": (
        {"alpha_pattern": {"q_proj": []}},
        CheckpointError,
        f"{J}lora_alpha [] for {Q} is not a usable number",
    ),
    "patterns in a list": (
        {"rank_pattern": ["q"]},
        CheckpointError,
        f'{J}rank_pattern is ["q"]; it must be a table of ranks by module',
    ),
    "pattern that is none": (
        {"alpha_pattern": {"(": 4}},
        CheckpointError,
        f"{J}alpha_pattern '(' is no regular expression: missing ), unterminated subpattern at position 7",
    ),
}
ENDLESS = [
    "(a+)+b", "(a|aa)+b", "(.*)*", "(.|..)+!", ".*.*.*.*.*.*!", "(.|.)" * 30, "a?" * 60 + "!", "(?:(?:.)*)*x", "(x+x+)+y",
    "((a?)(a?))*z", "(?=(.+)+)q", "[ab]*[ab]*[ab]*[ab]*[ab]*[ab]*!", "." * 2001, "(((^){999}){999}){999}",
]  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_config(case: str, write: Write) -> None:
    changes, kind, message = CONFIGS[case]
    with pytest.raises(WeightguardError) as error:
        lora_pairs(opened(write, **changes))
    assert (type(error.value), str(error.value)) == (kind, message)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_alpha_that_is_no_number(value: str, write: Write) -> None:
    root = write(
        "adapter",
        {"adapter_model.safetensors": factors(), "adapter_config.json": b'{"lora_alpha": %s}' % value.encode()},
    )
    with pytest.raises(CheckpointError, match=r"^adapter_config\.json: (the number )?\"?" + value):
        open_checkpoint(Resolved(root, None, None, "ADAPTER"))


@pytest.mark.parametrize("pattern", ENDLESS)
@pytest.mark.parametrize(
    "key", ["rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "modules_to_save"]
)
def test_a_pattern_that_may_never_end(key: str, pattern: str, write: Write) -> None:
    value: Any = {pattern: 2} if key.endswith("_pattern") else [pattern] if key == "modules_to_save" else pattern
    begin = time.monotonic()
    with pytest.raises(CheckpointError) as error:
        lora_pairs(opened(write, **{key: value}))
    assert str(error.value) == f"{J}{key} has a pattern that may never end: {pattern[:60]!r}"
    assert time.monotonic() - begin < 1


REAL = [
    "q_proj", r".*\.q_proj", r"model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj", r"^model\.layers\.(0|1|2|3)\..*",
    r".*layers.[0-9]+.*_proj$", "|".join(f"layers.{i}.mlp.down_proj" for i in range(60)),
]  # fmt: skip
# As Unsloth writes target_modules.
WIDE = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:k_proj|v_proj|q_proj|"
    r"out_proj|o_proj|gate_proj|up_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|"
    r"feed_forward|ffn|dense)\.(?:(?:k_proj|v_proj|q_proj|out_proj|o_proj|gate_proj|up_proj|down_proj)))"
)


@pytest.mark.parametrize("pattern", REAL)
def test_patterns_that_people_write(pattern: str) -> None:
    assert is_bounded(rf"(.*\.)?({pattern})$", 45)


def test_a_pattern_that_tools_write(write: Write) -> None:
    assert Q in lora_pairs(opened(write, target_modules=WIDE))


PIECES = st.sampled_from(
    ["a", "b", ".", "a*", ".*", "a?", "(a|b)", "(ab)+", "[ab]+", "(a+b)?", "b{2}", "b{0,3}", "(a|ab)*", "$"]
)


@given(st.lists(PIECES, max_size=9).map("".join), st.text("ab", min_size=40, max_size=60))
@settings(max_examples=300, deadline=None)
def test_what_is_called_bounded_ends_soon(pattern: str, text: str) -> None:
    if is_bounded(pattern + "!", len(text)):
        begin = time.process_time()
        re.match(pattern + "!", text)
        assert time.process_time() - begin < 1


TENSORS: dict[str, tuple[dict[str, Any], type, str]] = {
    "no factor": (
        {"base_model.model.x": zeros(1)},
        CheckpointError,
        "ADAPTER: no lora_A tensors; is this a LoRA adapter?",
    ),
    "no tensor": ({}, CheckpointError, "ADAPTER: no lora_A tensors; is this a LoRA adapter?"),
    "A without B": ({A_Q: zeros(2, 6)}, CheckpointError, f"{F}tensor {A_Q!r} has no lora_B beside it"),
    "B without A": ({B_Q: zeros(4, 2)}, CheckpointError, f"{F}tensor {B_Q!r} has no lora_A beside it"),
    "two ranks": (
        {A_Q: zeros(2, 6), B_Q: zeros(4, 3)},
        CheckpointError,
        f"{F}{A_Q!r} [2, 6] and {B_Q!r} [4, 3] do not share a rank",
    ),
    "A with three dimensions": (
        {A_Q: zeros(2, 6, 1), B_Q: zeros(4, 2)},
        CheckpointError,
        f"{F}{A_Q!r} [2, 6, 1] and {B_Q!r} [4, 2] do not share a rank",
    ),
    "no rank": (
        {A_Q: zeros(0, 6), B_Q: zeros(4, 0)},
        CheckpointError,
        f"{F}{A_Q!r} [0, 6] and {B_Q!r} [4, 0] do not share a rank",
    ),
    "A of whole numbers": (
        factors() | {A_Q: ("I32", (2, 6), bytes(48))},
        UnsupportedError,
        f"{F}tensor {A_Q!r} is I32, not a float type that can be edited",
    ),
    "B of eight bits": (
        factors() | {B_Q: ("F8_E4M3", (4, 2), bytes(8))},
        UnsupportedError,
        f"{F}tensor {B_Q!r} is F8_E4M3, not a float type that can be edited",
    ),
    "another prefix": (
        factors(prefix=""),
        CheckpointError,
        f"{F}tensor '{Q}.lora_A.weight' does not begin with 'base_model.model.', as peft writes it",
    ),
    "an embedding": (
        factors() | {"base_model.model.model.embed_tokens.lora_embedding_A": zeros(2, 6)},
        UnsupportedError,
        f"{F}tensor 'base_model.model.model.embed_tokens.lora_embedding_A': embedding adapters are not supported; "
        "merge with peft first",
    ),
    "magnitudes of DoRA": (
        factors() | {f"base_model.model.{Q}.lora_magnitude_vector": zeros(4)},
        UnsupportedError,
        f"{F}tensor 'base_model.model.{Q}.lora_magnitude_vector': DoRA is not supported; merge with peft first",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors(case: str, write: Write) -> None:
    tensors, kind, message = TENSORS[case]
    with pytest.raises(WeightguardError) as error:
        lora_pairs(opened(write, tensors))
    assert (type(error.value), str(error.value)) == (kind, message)


LEFT_OUT: list[dict[str, Any]] = [
    {"target_modules": ["v_proj"]}, {"target_modules": []}, {"target_modules": ".*v_proj"}, {"target_modules": "q_proj"},
    {"exclude_modules": ["q_proj"]}, {"exclude_modules": ".*q_proj"}, {"exclude_modules": [Q]},
    {"modules_to_save": ["self_attn"]}, {"layers_to_transform": 1}, {"layers_to_transform": [1, 2]},
    {"layers_to_transform": [0], "layers_pattern": "zz"},
]  # fmt: skip
ADAPTED: list[dict[str, Any]] = [
    {"target_modules": None}, {"target_modules": "all-linear"}, {"target_modules": "All-Linear"},
    {"target_modules": ".*q_proj"}, {"target_modules": [Q]},
    {"exclude_modules": ["v_proj", "proj", "q"]}, {"exclude_modules": "q_proj"}, {"exclude_modules": ""},
    {"modules_to_save": ["lm_head", "q"]}, {"layers_to_transform": 0}, {"layers_to_transform": [], "layers_pattern": ""},
    {"layers_to_transform": [0], "layers_pattern": ["h", "layers"]}, {"init_lora_weights": "Gaussian", "bias": "all"},
]  # fmt: skip


@pytest.mark.parametrize("changes", LEFT_OUT, ids=str)
def test_a_module_that_peft_would_leave_out(changes: dict[str, Any], write: Write) -> None:
    with pytest.raises(MismatchError) as error:
        lora_pairs(opened(write, **changes))
    assert str(error.value).startswith(
        f"{F}tensor {A_Q!r} belongs to a module that adapter_config.json leaves out (by "
    )


@pytest.mark.parametrize("changes", ADAPTED, ids=str)
def test_a_module_that_peft_would_adapt(changes: dict[str, Any], write: Write) -> None:
    assert list(lora_pairs(opened(write, **changes))) == [Q]


BASES: dict[str, tuple[dict[str, Any], str]] = {
    "without the module": ({"x.weight": zeros(4, 6)}, f"ADAPTER: adapts {Q}, which BASE does not have"),
    "wider": (
        {f"{Q}.weight": zeros(4, 8)},
        f"ADAPTER: {Q} is [4, 6] in the adapter, [4, 8] in BASE: the adapter belongs to another base",
    ),
    "taller": (
        {f"{Q}.weight": zeros(8, 6)},
        f"ADAPTER: {Q} is [4, 6] in the adapter, [8, 6] in BASE: the adapter belongs to another base",
    ),
    "the other way round": (
        {f"{Q}.weight": zeros(6, 4)},
        f"ADAPTER: {Q} is [4, 6] in the adapter, [6, 4] in BASE: the adapter belongs to another base",
    ),
}


@pytest.mark.parametrize("case", BASES)
def test_bases(case: str, write: Write) -> None:
    tensors, message = BASES[case]
    adapter = opened(write)
    with pytest.raises(MismatchError) as error:
        base_tensors(lora_pairs(adapter), base(write, tensors), adapter)
    assert str(error.value) == message


def test_a_saved_module_that_is_not_there(write: Write) -> None:
    adapter = opened(write, modules_to_save=["score", "lm_head"])
    tensors = {f"{Q}.weight": zeros(4, 6), "lm_head.weight": zeros(4, 6)}
    assert base_tensors(lora_pairs(adapter), base(write), adapter)  # a base with neither
    with pytest.raises(MismatchError, match=r"^ADAPTER: modules_to_save of .* names 'lm_head', "):
        base_tensors(lora_pairs(adapter), base(write, tensors), adapter)
    whole = opened(
        write, factors() | {"base_model.model.lm_head.weight": zeros(4, 6)}, modules_to_save=["score", "lm_head"]
    )
    assert base_tensors(lora_pairs(whole), base(write, tensors), whole)


@pytest.mark.parametrize("name", [f"{Q}.weight", f"{Q.removeprefix('model.')}.weight"])
def test_paired_with_a_base_with_and_without_its_head_class(name: str, write: Write) -> None:
    adapter = opened(write)
    assert list(base_tensors(lora_pairs(adapter), base(write, {name: zeros(4, 6)}), adapter)) == [name]


SCALINGS: list[tuple[dict[str, Any], float]] = [
    ({}, 2.0),
    ({"use_rslora": True}, 4 / math.sqrt(2)),
    ({"alpha_pattern": {"q_proj": 1}}, 0.5),
    ({"alpha_pattern": {r".*\.q_proj": 1}}, 0.5),
    ({"alpha_pattern": {"v_proj": 1}}, 2.0),
    ({"alpha_pattern": {"proj": 1}}, 2.0),
    ({"alpha_pattern": {"k_proj": 9, "self_attn.q_proj": 3, "q_proj": 1}}, 1.5),
    ({"r": 7, "rank_pattern": {"q_proj": 2}}, 2.0),
    ({"lora_alpha": 0.5}, 0.25),
    ({"lora_alpha": -4}, -2.0),
]


@pytest.mark.parametrize(("changes", "scaling"), SCALINGS)
def test_scaling(changes: dict[str, Any], scaling: float, write: Write) -> None:
    assert lora_pairs(opened(write, **changes))[Q].scaling == scaling
