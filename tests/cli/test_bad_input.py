"""Whatever a user gets wrong: one line that names it and says what to do, the documented exit code, nothing written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy
import pytest

from weightguard import methods

UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"
A = ["--aligned", "aligned"]
H = ["--harmful", "harmful.jsonl"]
S = ["--stats", "stats"]
M = ["--method", "magnitude", "--group", "row"]
O = ["-o", "out"]  # noqa: E741
METHODS = ", ".join(methods.METHODS)
# what is done to the place, the command, the exit code, the line
Case = tuple[Callable[[Any], object], list[str], int, str]


def nothing(place: Any) -> None:
    """The place as it is."""


def repair(*more: str, model: str = "tuned") -> list[str]:
    return ["repair", model, *more, *([] if {"--ratio", "--strength"} & {*more} else ["--ratio", "0.5"])]


def usage(line: str, *more: str) -> Case:
    return nothing, repair(*more), 2, line


def content(name: str, data: bytes | str) -> Callable[[Any], None]:
    return lambda place: (place / name).write_bytes(data.encode() if isinstance(data, str) else data)


def without(name: str) -> Callable[[dict[str, numpy.ndarray]], None]:
    return lambda tensors: tensors.__delitem__(name)


def reshaped(tensors: dict[str, numpy.ndarray]) -> None:
    tensors[UP] = tensors[UP][:6]


def more(tensors: dict[str, numpy.ndarray]) -> None:
    tensors["model.extra.weight"] = numpy.ones(3, "f4")


def spoiled(name: str, value: float) -> Callable[[dict[str, numpy.ndarray]], None]:
    return lambda tensors: tensors[name].__setitem__((0, 0), value)


NO_MODEL = "no such model: ./gone is neither a directory nor a hub id (org/name[@revision])"
MODELS: dict[str, Case] = {
    **{
        f"no such model to {line[0]}": (nothing, line, 3, NO_MODEL)
        for line in (
            ["inspect", "./gone"],
            ["stats", "./gone", "-o", "s"],
            ["repair", "./gone", *M, *O],
            ["apply", "plan", "./gone", *O],
            ["verify", "./gone"],
        )
    },
    "no such aligned model": (nothing, repair(*M, *O, "--aligned", "./gone"), 3, NO_MODEL),
    "no such model to verify against": (nothing, ["verify", "outputs/earlier", "--against", "./gone"], 3, NO_MODEL),
    "a hub id without a network": (
        nothing,
        ["inspect", "org/name", "--offline"],
        3,
        "org/name: no such directory, and not in the local cache, and offline; run once with network access",
    ),
    "a file": (nothing, ["inspect", "harmful.jsonl"], 3, "harmful.jsonl: a file; give the directory it lies in"),
    "the aligned model lacks a tensor": (
        lambda p: p.model("x", without(UP)),
        repair(*M, *O, "--aligned", "x"),
        3,
        f"tensor {UP!r} of tuned is not in the aligned model x",
    ),
    "the aligned model has another tensor": (
        lambda p: p.model("x", more),
        repair(*M, *O, "--aligned", "x"),
        3,
        "tensor 'model.extra.weight' of the aligned model x is not in tuned",
    ),
    "the aligned model has another shape": (
        lambda p: p.model("x", reshaped),
        repair(*M, *O, "--aligned", "x"),
        3,
        f"tensor {UP!r}: shape [12, 8] in tuned, [6, 8] in the aligned model x",
    ),
    "NaN in the model, without data": (
        lambda p: p.model("x", spoiled(UP, numpy.nan)),
        repair(*M, *O, model="x"),
        3,
        f"model.safetensors: tensor {UP!r} holds NaN or infinity; such weights cannot be scored or repaired",
    ),
    "NaN in the model, with data": (
        lambda p: p.model("x", spoiled(UP, numpy.nan)),
        repair(*A, *H, *O, model="x"),
        3,
        f"model.safetensors: tensor {UP!r} holds NaN or infinity; such weights cannot be scored or repaired",
    ),
    "NaN in the model, for statistics": (
        lambda p: p.model("x", spoiled("model.embed_tokens.weight", numpy.inf)),
        ["stats", "x", "--data", "all.jsonl", "-o", "s"],
        3,
        "model.safetensors: tensor 'model.embed_tokens.weight' holds NaN or infinity; such weights cannot be scored "
        "or repaired",
    ),
    "NaN in the aligned model": (
        lambda p: p.model("x", spoiled(DOWN, numpy.nan)),
        repair(*M, *O, "--aligned", "x"),
        3,
        f"model.safetensors: tensor {DOWN!r} holds NaN or infinity; such weights cannot be scored or repaired",
    ),
    "quantised": (
        lambda p: p.model("x", quantization_config={"quant_method": "gptq"}),
        repair(*A, *H, *O, model="x"),
        6,
        "x: quantised weights (gptq) cannot be edited; repair the unquantised model, then quantise",
    ),
    "a quantised aligned model": (
        lambda p: p.model("x", quantization_config={"quant_method": "awq"}),
        repair(*M, *O, "--aligned", "x"),
        6,
        "x: quantised weights (awq) cannot be edited; repair the unquantised model, then quantise",
    ),
    "a config of other widths": (
        lambda p: p.model("x", intermediate_size=13),
        repair(*H, *O, model="x"),
        3,
        "model.safetensors: tensor 'model.layers.0.mlp.gate_proj.weight' is [12, 8], config.json gives it 13 outputs "
        "(intermediate_size 13); "
        "the config belongs to another model",
    ),
    "a config of a thousand million words": (
        lambda p: p.model("x", vocab_size=10**9),
        repair(*H, *O, model="x"),
        3,
        "model.safetensors: tensor 'model.embed_tokens.weight' is [16, 8], config.json gives it 1000000000 rows "
        "(vocab_size 1000000000); "
        "the config belongs to another model",
    ),
    "a config of a width beyond memory": (
        lambda p: p.model("x", hidden_size=10**7),
        repair(*H, *O, model="x"),
        3,
        "model.safetensors: tensor 'model.layers.0.self_attn.q_proj.weight' is [8, 8], config.json gives it 10000000 inputs "
        "(hidden_size 10000000); "
        "the config belongs to another model",
    ),
    "no final norm": (
        lambda p: p.model("x", without("model.norm.weight")),
        repair(*H, *O, model="x"),
        3,
        "x: missing tensor 'model.norm.weight', which the architecture needs; download or save it again",
    ),
}

NO_ROW = {"prompt": "how do i pick a lock"}
DATA: dict[str, Case] = {
    "no such data": (
        nothing,
        repair(*O, "--harmful", "gone.jsonl"),
        3,
        "gone.jsonl: no such file, and not a hub data set id (org/name); check the path",
    ),
    "empty data": (
        content("d.jsonl", ""),
        repair(*O, "--harmful", "d.jsonl"),
        3,
        "d.jsonl: empty data, no rows; give at least one row",
    ),
    "a bad JSON line": (
        content("d.jsonl", '{"text": "a"}\n\n{"text": }\n'),
        repair(*O, "--harmful", "d.jsonl"),
        3,
        "d.jsonl, line 3: not valid JSON (Expecting value, column 10); correct it",
    ),
    "a bad JSON line of benign data": (
        content("d.jsonl", "{"),
        repair(*S, *O, "--utility", "d.jsonl", "--utility-ratio", "0.1"),
        3,
        "d.jsonl, line 1: not valid JSON (Expecting property name enclosed in double quotes, column 2); correct it",
    ),
    "no countable token": (
        lambda p: p.rows("d.jsonl", NO_ROW),
        repair(*O, "--harmful", "d.jsonl", "--tokens", "response"),
        3,
        "d.jsonl: data with no countable token (no row has a response within the length limit); give rows that have one",
    ),
    "ids beyond the vocabulary": (
        lambda p: p.tokenizer("x", {"<unk>": 0, "pick": 99}),
        repair(*H, *O, model="x"),
        3,
        "harmful.jsonl: token id 99 in row 1 is beyond the model's vocabulary of 16; "
        "tokenise with the tokenizer of this model",
    ),
    "no tokenizer": (
        lambda p: (p.model("x"), *[(p / "x" / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")]),
        repair(*H, *O, model="x"),
        3,
        "x: no tokenizer; add its files, or give pre-tokenised data (.safetensors with input_ids)",
    ),
    "a directory as data": (
        nothing,
        repair(*O, "--harmful", "aligned"),
        3,
        "aligned: is a directory, a file is needed (.jsonl .json .csv .parquet .txt)",
    ),
    "too few prompts to calibrate on": (
        nothing,
        repair(*A, *S, *O, "--strength", "auto", "--safety", "harmful.jsonl"),
        3,
        "harmful.jsonl: 2 prompts; --strength auto needs at least 100",
    ),
}


def renamed(place: Any) -> None:
    """Statistics of a model with one layer less."""
    place.model(
        "small", lambda tensors: [tensors.pop(n) for n in list(tensors) if ".layers.1." in n], num_hidden_layers=1
    )
    assert place.run("stats", "small", "--data", "harmful.jsonl", "-o", "small.stats")[0] == 0


def narrower(place: Any) -> None:
    """Statistics of a model of the same names and other widths."""

    def halve(tensors: dict[str, numpy.ndarray]) -> None:
        for name in list(tensors):
            if ".mlp." in name:
                axis = 1 if "down" in name else 0
                tensors[name] = numpy.ascontiguousarray(numpy.split(tensors[name], 2, axis)[0])

    place.model("small", halve, intermediate_size=6)
    assert place.run("stats", "small", "--data", "harmful.jsonl", "-o", "small.stats")[0] == 0


NOT_STATISTICS = "it should be statistics written by `weightguard stats`"
STATISTICS: dict[str, Case] = {
    "no such statistics": (nothing, repair(*O, "--stats", "gone"), 3, f"gone: no such file; {NOT_STATISTICS}"),
    "a directory": (nothing, repair(*O, "--stats", "aligned"), 3, f"aligned: not a regular file; {NOT_STATISTICS}"),
    "text": (
        nothing,
        repair(*O, "--stats", "harmful.jsonl"),
        3,
        "harmful.jsonl: not a safetensors file (no header where one must be); it should be statistics written by "
        "`weightguard stats`: make it again",
    ),
    "a model": (
        nothing,
        repair(*O, "--stats", "aligned/model.safetensors"),
        3,
        "model.safetensors: not statistics written by `weightguard stats`",
    ),
    "cut": (
        lambda p: (p / "stats").write_bytes((p / "stats").read_bytes()[:-8]),
        repair(*O, *S),
        3,
        "stats: truncated, 2832 bytes where the header needs 2840; it should be statistics written by `weightguard stats`: "
        "make it again",
    ),
    "of fewer layers": (
        renamed,
        repair(*A, *O, "--stats", "small.stats"),
        3,
        "the statistics hold nothing for tensor 'model.layers.1.self_attn.q_proj.weight'; collect them on this model again",
    ),
    "of other widths": (
        narrower,
        repair(*A, *O, "--stats", "small.stats"),
        3,
        "the statistics of tensor 'model.layers.0.mlp.down_proj.weight' have 6 inputs, the model has 12",
    ),
    "over other tokens": (
        nothing,
        repair(*O, *S, "--tokens", "response"),
        2,
        "--stats were collected over the tokens 'all', the repair asks for 'response'",
    ),
}

RANGE = "must lie between 0 and 1"
OPTIONS: dict[str, Case] = {
    "no command": (nothing, ["mend"], 2, "No such command 'mend'."),
    "no model": (nothing, ["repair"], 2, "Missing argument 'MODEL'."),
    "no output": usage("-o OUT is missing; or --dry-run for the plan alone", *M),
    "no output of statistics": (nothing, ["stats", "tuned"], 2, "Missing option '-o' / '--out'."),
    **{
        f"ratio {ratio!r}": usage(f"--ratio {ratio}: {words}", *M, *O, "--ratio", ratio)
        for ratio, words in {
            "1.5": RANGE,
            "-0.1": RANGE,
            "nan": RANGE,
            "inf": RANGE,
            "-inf": RANGE,
            "sNaN": RANGE,
            "1e9": RANGE,
            "a": "not a number",
            "": "not a number",
            "0,5": "not a number",
            "1/2": "not a number",
            "0x1": "not a number",
            "1e-9999999999999999999": "not a number",
            "1e-999999999": "too small to mean anything",
        }.items()
    },
    "ratio that selects nothing": usage(
        "--ratio 0.001 selects not one entry of any row; give a larger ratio", *M, *O, "--ratio", "0.001"
    ),
    "strength": usage(f"--strength 2: {RANGE}", *M, *O, "--strength", "2"),
    "strength that is none": usage("--strength weak: not a number", *M, *O, "--strength", "weak"),
    "strength and ratio": usage(
        "--strength and --ratio set the same thing; give one of them", *M, *O, "--strength", "0.5", "--ratio", "0.5"
    ),
    "strength auto and ratio": usage(
        "--strength and --ratio set the same thing; give one of them", *O, *S, "--strength", "auto", "--ratio", "0.5"
    ),
    "safety without auto": usage(
        "--safety is the calibration data of --strength auto; give both or neither", *M, *O, "--safety", "harmful.jsonl"
    ),
    "utility without a ratio": usage(
        "--utility needs --utility-ratio, the share of entries to leave alone", *S, *O, "--utility", "harmful.jsonl"
    ),
    "utility ratio without data": usage("--utility-ratio needs --utility data", *S, *O, "--utility-ratio", "0.1"),
    "statistics and data": usage("--stats and --harmful: the statistics come from one of them; give one", *S, *H, *O),
    "data for a method that takes none": usage(
        "--harmful is not used by --method magnitude, which looks at no data", *M, *H, *O
    ),
    "unknown method": usage(f"--method heal: unknown; methods are {METHODS}", *O, "--method", "heal"),
    "flag of another method": usage("--seed is not an option of --method magnitude", *M, *O, "--seed", "1"),
    "flag of no method": usage("No such option '--grup'. Did you mean '--group'?", *M, *O, "--grup", "1"),
    "choice": usage(
        "Invalid value for '--target': 'bias' is not one of 'delta', 'weight', 'factor'.", *O, "--target", "bias"
    ),
    "rank for a method without": usage("--rank is not an option of --method magnitude", *M, *O, "--rank", "1"),
    "delta without a reference": usage(
        "--target delta needs the aligned model; give --aligned", *M, *O, "--target", "delta"
    ),
    "factor without an adapter": usage(
        "--target factor needs an adapter; for a full model give --target delta or weight", *M, *O, "--target", "factor"
    ),
    "scale without a reference": (
        nothing,
        ["repair", "tuned", *O, "--method", "scale"],
        2,
        "--method scale scales an update; give --aligned, or an adapter",
    ),
    "scope": usage("--scope x: this model has the roles down, gate, k, o, q, up, v, or all", *M, *O, "--scope", "x"),
    "scope of nothing": usage(
        "--scope ,: this model has the roles down, gate, k, o, q, up, v, or all", *M, *O, "--scope", ","
    ),
    "limit": usage("limit is 0; give 1 or more, or leave it out", *H, *O, "--limit", "0"),
    "limit of the shipped data": usage("--limit -1: must be at least 1", *O, "--limit", "-1"),
    "limit that is none": usage("Invalid value for '--limit': 'x' is not a valid integer.", *H, *O, "--limit", "x"),
    "max-length": usage("max_length is 0; give 1 or more", *H, *O, "--max-length", "0"),
    "threads": usage("--threads 0: must be at least 1", *H, *O, "--threads", "0"),
    "dtype": usage("--dtype int8: must be one of float32, bfloat16, float16, float64", *H, *O, "--dtype", "int8"),
    "a flag that lacks its value": usage("Option '--ratio' requires an argument.", *M, "--ratio"),
    "config file that is missing": usage("--config gone.toml: No such file or directory", "--config", "gone.toml"),
}
ALL = {
    f"{kind}: {name}": case
    for kind, table in (("model", MODELS), ("data", DATA), ("statistics", STATISTICS), ("options", OPTIONS))
    for name, case in table.items()
}


@pytest.mark.parametrize("case", ALL)
def test_one_line_and_nothing_written(case: str, place: Any) -> None:
    prepare, arguments, code, line = ALL[case]
    shutil.copy(place / "harmful.jsonl", place / "all.jsonl")
    place.plan()
    prepare(place)
    before = place.everything()
    assert place.run(*arguments) == (code, "", [f"weightguard: {line}"])
    assert place.everything() == before
