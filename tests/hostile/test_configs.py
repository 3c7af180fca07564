"""Configs that mislead, and tensors that cannot be repaired: refused by name, before anything is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weightguard.checkpoint.naming import FAMILIES, WRAPPERS

SIZE = "it must be a whole number from 1 to 2147483647"
FLOAT = "it must be a float type of torch such as bfloat16"
C, W = "config.json: ", "model.safetensors: tensor "
NORM, UP, DOWN = "model.norm.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"
LAYERS = C + "num_hidden_layers is {}; it must be 1 to 100000"
KNOWN = ", ".join(sorted([*FAMILIES, *WRAPPERS]))
ROW = f"(known: {KNOWN}); to add it, give FAMILIES in weightguard/checkpoint/naming.py a row: "
FAMILY = 'Family("layers", ({"q": "self_attn.q_proj", ...},), ({"up": "mlp.up_proj", ...},))'
OUT_OF = "{}: a link out of the checkpoint, to TMP/in/outside; copy the file itself"
NAN, INFINITE = b"\0\0\xc0\x7f", b"\0\0\x80\xff"
QUANTISED = "quantised weights ({}) cannot be edited; repair the unquantised model, then quantise"
HELD = "holds NaN or infinity; such weights cannot be scored or repaired"
DAMAGED = "holds NaN or infinity; the model is damaged"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 99\n"
Q, GIVES = "model.layers.0.self_attn.q_proj.weight", "config.json gives it"
OTHER = "; the config belongs to another model"
Case = tuple[Callable[[Any], object], str] | tuple[Callable[[Any], object], str, int]


def config(**changes: Any) -> Callable[[Any], None]:
    return lambda m: m.config(**changes)


def text(data: bytes | str | list) -> Callable[[Any], None]:
    return lambda m: m.write("config.json", data)


def value(name: str, bad: bytes, dtype: str = "F32") -> Callable[[Any], None]:
    """The tensor with its last entry exchanged."""

    def damage(m: Any) -> None:
        shape = m.tensors[name][1]
        m.tensor(name, dtype, shape)
        m.tensor(name, dtype, shape, m.tensors[name][2][: -len(bad)] + bad)

    return damage


def shape(*sizes: int) -> Callable[[Any], None]:
    return lambda m: m.tensor(UP, "F32", sizes)


CONFIGS: dict[str, Case] = {
    "missing": (lambda m: m.remove("config.json"), "MODEL: no config.json"),
    "a directory": (lambda m: m.directory("config.json"), f"{C}not a regular file (drwxr-xr-x)"),
    "a pipe": (lambda m: m.fifo("config.json"), f"{C}not a regular file (prw-r--r--)"),
    "a link out": (lambda m: m.link("config.json", "../outside"), OUT_OF.format("config.json")),
    "a link to nothing": (lambda m: m.link("config.json", "gone"), f"{C}a link to nothing"),
    "empty": (text(""), f"{C}is empty, JSON was expected"),
    "not JSON": (text("model_type: llama"), f"{C}line 1 column 1: Expecting value"),
    "a list": (text([]), f"{C}not a JSON object"),
    "a string": (text('"llama"'), f"{C}not a JSON object"),
    "null": (text("null"), f"{C}not a JSON object"),
    "a byte order mark": (text(b"\xef\xbb\xbf{}"), f"{C}begins with a byte order mark; save it as plain UTF-8"),
    "git-lfs pointer": (text(LFS), f"{C}is a git-lfs pointer, not the file itself; run `git lfs pull`"),
    "HTML page": (text("<!doctype html>"), f"{C}is an HTML or XML page, not JSON; download the file again"),
    "a key twice": (
        text('{"model_type": "llama", "model_type": "gpt2"}'),
        f'{C}the key "model_type" appears twice in one object',
    ),
    "NaN": (text('{"rms_norm_eps": NaN}'), f"{C}NaN is not JSON"),
    "infinity": (text('{"rms_norm_eps": 1e999}'), f'{C}the number "1e999" is too large for a float'),
    "deep": (text('{"a":' * 100_000), f"{C}nested deeper than 64 levels"),
    "without an architecture": (
        config(model_type=None),
        f"{C}architecture 'None' is not supported {ROW}\"None\": {FAMILY}",
        6,
    ),
    "unknown architecture": (
        config(model_type="mamba"),
        f"{C}architecture 'mamba' is not supported {ROW}\"mamba\": {FAMILY}",
        6,
    ),
    "architecture that is a list": (
        config(model_type=["llama"]),
        f"{C}architecture \"['llama']\" is not supported {ROW}\"['llama']\": {FAMILY}",
        6,
    ),
    "no layer": (config(num_hidden_layers=0), LAYERS.format(0)),
    "less than no layer": (config(num_hidden_layers=-1), LAYERS.format(-1)),
    "a thousand million layers": (config(num_hidden_layers=10**9), LAYERS.format(10**9)),
    "layers beyond any number": (config(num_hidden_layers=10**4000), LAYERS.format("1" + "0" * 39)),
    "layers that are a float": (config(num_hidden_layers=1.0), LAYERS.format("1.0")),
    "layers that are text": (config(num_hidden_layers="1"), LAYERS.format("1")),
    "layers that are true": (config(num_hidden_layers=True), LAYERS.format("True")),
    "layers unsaid": (config(num_hidden_layers=None), LAYERS.format("missing")),
    "more layers than tensors": (
        config(num_hidden_layers=2),
        "missing tensor: no layers.1.self_attn.q_proj.weight for the q of layer 1 (config.json says 2 layers)",
    ),
    "100 000 layers": (
        config(num_hidden_layers=100_000),
        "missing tensor: no layers.1.self_attn.q_proj.weight for the q of layer 1 (config.json says 100000 layers)",
    ),
    "fewer layers than tensors": (
        lambda m: m.tensor("model.layers.1.mlp.up_proj.weight", "F32", (6, 4)),
        f"{C}1 layers, but the tensors hold more decoder linears than that",
    ),
    "a layer under two names": (
        lambda m: m.tensor("model.layers.00.mlp.up_proj.weight", "F32", (6, 4)),
        f"{C}1 layers, but the tensors hold more decoder linears than that",
    ),
    "quantised": (
        config(quantization_config={"quant_method": "gptq", "bits": 4}),
        "MODEL: " + QUANTISED.format("gptq"),
        6,
    ),
    "quantised in no word": (
        config(quantization_config={}),
        f"{C}quantization_config is empty, and transformers loads no such model; take it out if the weights are plain",
        6,
    ),
    "quantised in one word": (config(quantization_config="awq"), "MODEL: " + QUANTISED.format("awq"), 6),
    "no head": (config(num_attention_heads=0), f"{C}num_attention_heads is 0; {SIZE}"),
    "heads that do not divide the hidden size": (
        config(num_attention_heads=3, num_key_value_heads=None),
        f"{C}num_attention_heads is 3; it must divide the hidden size, 4",
    ),
    "groups that do not divide the heads": (
        config(num_attention_heads=4, num_key_value_heads=3),
        f"{C}num_key_value_heads is 3; it must divide the number of attention heads, 4",
    ),
    "a hidden size that is text": (config(hidden_size="4"), f'{C}hidden_size is "4"; {SIZE}'),
    "a vocabulary beyond any number": (
        config(vocab_size=10**100),
        f"{C}vocab_size is 1{'0' * 59}...; {SIZE}",
    ),
    "a switch that is a word": (
        config(tie_word_embeddings="yes"),
        f'{C}tie_word_embeddings is "yes"; it must be true or false',
    ),
    "a switch that is a number": (config(use_cache=1), f"{C}use_cache is 1; it must be true or false"),
    "an activation that is code": (
        config(hidden_act="os.system"),
        f'{C}hidden_act is "os.system"; it must be one that transformers has, such as silu',
    ),
    "an activation that is a list": (
        config(hidden_act=["silu"]),
        f'{C}hidden_act is ["silu"]; it must be one that transformers has, such as silu',
    ),
    "auto_map in a language model of its own": (
        config(text_config={"auto_map": {"AutoConfig": "evil.C"}}),
        f'{C}text_config is {{"auto_map": {{"AutoConfig": "evil.C"}}}}; a llama has no language model in it',
    ),
    "a vision tower with an activation that is code": (
        config(model_type="llava", vision_config={"hidden_act": "evil"}),
        f'{C}vision_config.hidden_act is "evil"; it must be one that transformers has, such as silu',
    ),
    "a dtype of integers": (config(dtype="int8"), f'{C}dtype is "int8"; {FLOAT}'),
    "a dtype that torch has not": (config(torch_dtype="evil"), f'{C}torch_dtype is "evil"; {FLOAT}'),
    "quantised to a dtype of integers": (
        config(quantization_config={"quant_method": "bitsandbytes"}, torch_dtype="int8"),
        "MODEL: " + QUANTISED.format("bitsandbytes"),
        6,
    ),
    "quantised without a method": (
        config(quantization_config={"bits": 4}),
        "MODEL: " + QUANTISED.format("None"),
        6,
    ),
    "hidden size of another model": (
        config(hidden_size=8),
        f"{W}'{Q}' is [4, 4], {GIVES} 8 inputs (hidden_size 8){OTHER}",
    ),
    "width of another model": (
        config(intermediate_size=7),
        f"{W}'model.layers.0.mlp.gate_proj.weight' is [6, 4], {GIVES} 7 outputs (intermediate_size 7){OTHER}",
    ),
    "vocabulary of another model": (
        config(vocab_size=7),
        f"{W}'model.embed_tokens.weight' is [5, 4], {GIVES} 7 rows (vocab_size 7){OTHER}",
    ),
    "heads of another model": (
        config(num_attention_heads=4, head_dim=2),
        f"{W}'{Q}' is [4, 4], {GIVES} 8 outputs (num_attention_heads 4 of 2){OTHER}",
    ),
    "groups of another model": (
        config(num_key_value_heads=2),
        f"{W}'{Q.replace('q_proj', 'k_proj')}' is [2, 4], {GIVES} 4 outputs (num_key_value_heads 2 of 2){OTHER}",
    ),
}

TENSORS: dict[str, Case] = {
    "NaN in an edited matrix": (value(UP, NAN), f"{W}{UP!r} {HELD}"),
    "infinity in an edited matrix": (value(DOWN, INFINITE), f"{W}{DOWN!r} {HELD}"),
    "NaN in a norm": (value(NORM, NAN), f"{W}{NORM!r} {DAMAGED}"),
    "NaN in the embedding": (
        value("model.embed_tokens.weight", NAN),
        f"{W}'model.embed_tokens.weight' {DAMAGED}",
    ),
    "NaN in half precision": (value(UP, b"\0\x7e", "F16"), f"{W}{UP!r} {HELD}"),
    "infinity in half precision": (value(NORM, b"\0\xfc", "F16"), f"{W}{NORM!r} {DAMAGED}"),
    "NaN in bfloat16": (value(UP, b"\xc0\x7f", "BF16"), f"{W}{UP!r} {HELD}"),
    "infinity in bfloat16": (value(NORM, b"\x80\x7f", "BF16"), f"{W}{NORM!r} {DAMAGED}"),
    "NaN in double precision": (value(UP, b"\0\0\0\0\0\0\xf8\x7f", "F64"), f"{W}{UP!r} {HELD}"),
    "matrix without the second dimension": (shape(24), f"{W}{UP!r} is [24], where a matrix must be"),
    "matrix with a third dimension": (shape(2, 3, 4), f"{W}{UP!r} is [2, 3, 4], where a matrix must be"),
    "matrix that is a scalar": (shape(), f"{W}{UP!r} is [], where a matrix must be"),
    "matrix without a row": (shape(0, 4), f"{W}{UP!r} is [0, 4], where a matrix must be"),
    "matrix without a column": (shape(6, 0), f"{W}{UP!r} is [6, 0], where a matrix must be"),
    "matrix of integers": (
        lambda m: m.tensor(UP, "I64", (6, 4), bytes(192)),
        f"{W}{UP!r} is I64, not a float type that can be edited",
        6,
    ),
    "matrix of bytes": (
        lambda m: m.tensor(UP, "I8", (6, 4)),
        f"{W}{UP!r} is I8, quantised; repair the unquantised model instead",
        6,
    ),
    "experts in blocks of MXFP4": (
        lambda m: m.tensor("model.layers.0.mlp.experts.down_proj_blocks", "U8", (2, 4, 1, 16), bytes(128)),
        f"{W}'model.layers.0.mlp.experts.down_proj_blocks' is U8, quantised; repair the unquantised model instead",
        6,
    ),
    "matrix of 8-bit floats": (
        lambda m: m.tensor(UP, "F8_E4M3", (6, 4)),
        f"{W}{UP!r} is F8_E4M3, quantised; repair the unquantised model instead",
        6,
    ),
    "packed weights": (
        lambda m: m.tensor("model.layers.0.mlp.up_proj.qweight", "I8", (6, 4)),
        f"{W}'model.layers.0.mlp.up_proj.qweight' is I8, quantised; repair the unquantised model instead",
        6,
    ),
}
ALL = {f"{k}: {name}": case for k, table in (("config", CONFIGS), ("tensors", TENSORS)) for name, case in table.items()}


@pytest.mark.parametrize("case", ALL)
def test_refused(case: str, model: Any, refused: Callable[..., None], tmp_path: Path) -> None:
    damage, message, *code = ALL[case]
    damage(model)
    refused(model.path, message.replace("TMP", str(tmp_path)), *code)


@pytest.mark.parametrize(
    "dtype, zeros", [("F32", b"\0\0\0\0\0\0\0\x80"), ("BF16", b"\0\0\0\x80"), ("F16", b"\0\x80\0\0")]
)
def test_zeros_of_either_sign_are_seen(dtype: str, zeros: bytes, model: Any) -> None:
    import weightguard as wg

    model.tensor(UP, dtype, (6, 4), zeros * 12)
    assert wg.inspect(str(model.path)).problems == (f"{W}{UP!r} is all zeros",)
    model.tensor(UP, dtype, (6, 4), zeros * 11 + zeros[: len(zeros) // 2] + b"\1" + bytes(len(zeros) // 2 - 1))
    assert wg.inspect(str(model.path)).problems == ()


def test_inspect_tells_a_config_of_another_model(model: Any) -> None:
    import weightguard as wg

    model.config(hidden_size=8)
    said = f"{W}'{Q}' is [4, 4], {GIVES} 8 inputs (hidden_size 8){OTHER}, and 6 more like it"
    assert wg.inspect(str(model.path)).problems == (said,)


@pytest.mark.parametrize("kind", ["t5", "bart", "mamba2", "nothing known", None])
def test_the_table_is_asked_before_transformers(kind: str | None, model: Any, tmp_path: Path) -> None:
    import weightguard as wg
    from weightguard.errors import UnsupportedError

    model.config(model_type=kind)
    said = re.escape(f"{C}architecture '{kind}' is not supported {ROW}\"{kind}\": {FAMILY}")
    with pytest.raises(UnsupportedError, match=said):
        wg.stats(model.path, out=tmp_path / "S")
    with pytest.raises(UnsupportedError, match=said):
        wg.attack(model.path, attack="abliteration", out=tmp_path / "OUT")


@pytest.mark.parametrize("declared", [None, {"quant_method": "gptq"}])
def test_inspect_calls_packed_weights_quantised_and_not_missing(declared: dict | None, model: Any) -> None:
    import weightguard as wg

    model.tensors[UP.replace(".weight", ".qweight")] = ("I8", (6, 4), b"\1" * 24)
    del model.tensors[UP]
    model.single()
    model.config(quantization_config=declared)
    (said,) = wg.inspect(str(model.path)).problems
    assert "quantised" in said and "missing" not in said


def test_names_of_a_wrapped_model_are_told_by_every_command(model: Any, tmp_path: Path) -> None:
    import weightguard as wg
    from weightguard.errors import CheckpointError

    model.tensors = {f"module.{name}": held for name, held in model.tensors.items()}
    model.single()
    said = "tensors are named module.model.layers..., as saved from a module around the model"
    assert [problem[: len(said)] for problem in wg.inspect(str(model.path)).problems] == [said]
    given = {"target": "weight", "method": "magnitude", "ratio": "0.5"}
    assert any(said in note for note in wg.repair(model.path, **given, out=tmp_path / "OUT").report.notes)
    with pytest.raises(CheckpointError, match=r"missing tensor 'model.embed.*; tensors are named module"):
        wg.stats(model.path, data=str(pretokenised(tmp_path)))
    del model.tensors[f"module.{UP}"]
    model.single()
    with pytest.raises(CheckpointError, match=r"missing tensor: no .*; tensors are named module"):
        wg.repair(model.path, **given, out=tmp_path / "OUT2")


def pretokenised(place: Path) -> Path:
    import numpy
    from safetensors.numpy import save_file

    ids = numpy.ones((1, 3), numpy.int64)
    save_file({"input_ids": ids, "attention_mask": ids, "labels": ids}, place / "rows.safetensors")
    return place / "rows.safetensors"
