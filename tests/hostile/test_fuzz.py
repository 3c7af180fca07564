"""Generated indexes, configs and policies: refused in one line within a second, or what the strict rules allow.

Headers, JSON, adapter configs, cards and data have theirs in tests/checkpoint and tests/data; benchmarks/fuzz.py looks for
longer and guided by coverage.
"""

from __future__ import annotations

import copy
import json
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weightguard.checkpoint import decoder_linears, open_checkpoint, resolve
from weightguard.checkpoint.layout import read_layout
from weightguard.errors import WeightguardError
from weightguard.verdict.policy import Policy, shipped_policy

HARD = (None, True, False, 0, 1, -1, 2, 10**9, 2**63, 2**64, 10**400, 1.0, 1e308, -0.0, "", "1", "..", "/etc/passwd",
        "../x.safetensors", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "llama", "gpt2", "a" * 5000,
        "\ud800", [], {}, [[]], {"a": {}})  # fmt: skip
VALUES = st.sampled_from(HARD) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
MANY = settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """The value with one to three places exchanged, taken out, or added to."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(places(value)[1:] or [("x",)]))
        holder = value
        for step in way:
            holder = holder[step]
        match draw(st.sampled_from(("exchange", "take out", "add"))):
            case "exchange":
                holder[last] = copy.deepcopy(draw(VALUES))  # a strategy may give the same list twice, once into itself
            case "take out" if isinstance(holder, dict):
                del holder[last]
            case _ if isinstance(holder, dict):
                holder[
                    draw(st.text(max_size=12) | st.sampled_from(("auto_map", "quantization_config", "num_experts")))
                ] = copy.deepcopy(draw(VALUES))
        if not value or not isinstance(value, dict):
            return value
    return value


def refused(work: Callable[[], Any]) -> bool:
    """Whether the work ends in an error of our own, on one line; either way within a second."""
    begin = time.process_time()
    try:
        work()
    except WeightguardError as error:
        assert "\n" not in str(error) and 0 < len(str(error)) < 4000
        return True
    finally:
        assert time.process_time() - begin < 1
    return False


@MANY
@given(st.data())
def test_index(model: Any, data: st.DataObject) -> None:
    model.sharded()
    name = "model.safetensors.index.json"
    before = json.loads((model / name).read_bytes())
    found = data.draw(changed(before))
    model.write(name, json.dumps(found).encode())
    wanted = isinstance(found, dict) and found.get("weight_map") == before["weight_map"]
    if not refused(lambda: read_layout(model.path)):
        assert wanted, "an index was accepted that is not that of the shards"


@MANY
@given(st.data())
def test_config(model: Any, data: st.DataObject) -> None:
    before = json.loads((model / "config.json").read_bytes())
    found = data.draw(changed(before))
    model.write("config.json", json.dumps(found).encode())

    def read() -> None:
        opened = open_checkpoint(resolve(str(model.path)))
        assert decoder_linears(opened.config, opened.tensors)

    if not refused(read):
        assert found["num_hidden_layers"] == 1 and type(found["num_hidden_layers"]) is int
    model.config()


SIZES = (
    "hidden_size",
    "num_attention_heads",
    "vocab_size",
    "head_dim",
    "num_key_value_heads",
    "max_position_embeddings",
)
OTHERS = ("rope_parameters", "hidden_act", "rms_norm_eps", "layer_types", "dtype")


@pytest.mark.parametrize("key", [*SIZES, *OTHERS])
def test_a_config_that_transformers_is_given(key: str, model: Any) -> None:
    """What our own reading lets through may be anything to transformers: a model without weights is built, or it is refused."""
    from weightguard.statistics.loading import bare_model, device_of

    bare_model(open_checkpoint(resolve(str(model.path))), "float32", device_of("cpu"))  # imports take their time once
    for value in (*(each for each in HARD if each != "\ud800"), float(10**9), [1] * 1000):
        model.write(
            "config.json", json.dumps({**json.loads((model / "config.json").read_bytes()), key: value}).encode()
        )
        refused(lambda: bare_model(open_checkpoint(resolve(str(model.path))), "float32", device_of("cpu")))
        model.config()


@MANY
@given(st.data())
def test_policy(data: st.DataObject) -> None:
    raw = shipped_policy().decode()
    lines = raw.splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(lines) - 1))
        key, equals, _ = lines[at].partition(" = ")
        other = data.draw(st.sampled_from(("0", "-1", "1e400", "nan", "inf", str(10**400), hex(16**5000), '"x"', "[]", "{}", "true",
                                           "[", '"\ud7ff"', "1979-05-27", "0.5", "'''")))  # fmt: skip
        lines[at] = data.draw(
            st.sampled_from((f"{key}{equals}{other}", f"x{lines[at]}", "", lines[at] * 2, f"[{other}]"))
        )
    text = "\n".join(lines)
    if not refused(lambda: Policy.parse(text.encode(), "p.toml")):
        found, said = Policy.parse(text.encode(), "p.toml"), tomllib.loads(text)
        assert said["format"] == 1 and {limit.name for limit in found.limits} == set(said["limits"]) != set()
        assert all(abs(limit.worst) < float("inf") and limit.min_n >= 1 for limit in found.limits)


@pytest.mark.parametrize("value", [hex(16**5000), f"[{hex(16**5000)}]"], ids=["number", "list"])
def test_a_policy_of_a_format_beyond_all_digits(value: str) -> None:
    text = shipped_policy().decode().replace("format = 1", f"format = {value}", 1)
    assert refused(lambda: Policy.parse(text.encode(), "p.toml"))


def test_nothing_of_the_fuzzer_needs_atheris_here() -> None:
    """Its file is at least Python: atheris is not among the dependencies."""
    compile((Path(__file__).parents[2] / "benchmarks" / "fuzz.py").read_text(), "fuzz.py", "exec")
