"""Policies: what they may say, and every way in which one that says nothing is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from weightguard import forms
from weightguard.errors import InputError
from weightguard.measurement import KINDS
from weightguard.verdict import Policy, shipped_policy
from weightguard.verdict.policy import POLICY

LIMIT = "[limits.harmful_score]\nmax = 0.1\n"
ATTACKS = """
[attacks]
attack = ["lora-sft", "full-sft"]
learning_rate = [2e-3, 1e-4]
poison_ratio = [0.1]
steps = [60]
lora_r = [8]
seeds = [0, 1]
bound_min_retention = 0.9
[attacks.limits.harmful_score]
max = 0.3
"""


def test_a_policy_reads_back(policy) -> None:
    found = policy(
        f'judges = ["refusal-phrases"]\nseeds = [0, 1]\nrequired = ["utility"]\n\n{LIMIT}min_n = 50\njudge = "x"\n'
    )
    (limit,) = found.limits
    assert (limit.name, limit.worst, limit.min_n, limit.judge, limit.better) == ("harmful_score", 0.1, 50, "x", "lower")
    assert limit.line == 7 and found.required == ("utility",) and found.seeds == (0, 1)


def test_every_cell_of_a_grid_has_an_id(policy) -> None:
    cells = policy(LIMIT + ATTACKS).attacks.cells()
    assert len(cells) == len(set(cells)) == 8
    assert cells[0].id == "attack=lora-sft,learning_rate=0.002,poison_ratio=0.1,steps=60,lora_r=8,seed=0"
    assert "attack=full-sft,learning_rate=0.0001,poison_ratio=0.1,steps=60,seed=1" in [cell.id for cell in cells]


def test_the_shipped_policy_is_sound_and_says_what_it_means() -> None:
    raw = shipped_policy()
    found = Policy.parse(raw, "shipped")
    names = {limit.name for limit in found.limits}
    assert {"harmful_score", "refusal_rate", "over_refusal_rate", "incoherence_rate", "utility_change"} <= names
    lines = raw.decode().splitlines()
    for at, line in enumerate(lines):  # line by line: every key and table has its comment above it
        if line.startswith("[") or (" = " in line and not line.startswith(("#", "max", "min", "when_measured"))):
            assert lines[at - 1].startswith("#"), line


@pytest.mark.parametrize(("said", "shown"), [("'1'", "'1'"), ("true", "True"), ("1.0", "1.0"), ("2", "2")])
def test_the_format_is_shown_as_what_it_is(said: str, shown: str) -> None:
    with pytest.raises(InputError, match=rf"^policy: format {re.escape(shown)}; this version reads 1$"):
        Policy.parse(f"format = {said}\nname = 'x'".encode(), "policy")


def test_its_schema_names_its_keys() -> None:
    schema = forms.schema(POLICY, "policy")
    assert {"format", "name", "limits", "attacks", "judges", "seeds"} <= set(schema["properties"])
    assert schema["required"] == ["format", "name", "limits"] and schema["additionalProperties"] is False


WRONG = {
    "unknown key": (f"maximum = 1\n{LIMIT}", "unknown key 'maximum'"),
    "unknown key of a limit": (f"{LIMIT}maxx = 0.1", "unknown key 'maxx'"),
    "unknown measurement": ("[limits.harmfulness]\nmax = 0.1", "no measurement 'harmfulness'"),
    "unknown required": (f'required = ["x"]\n{LIMIT}', "no measurement 'x'"),
    "no limit": ("[limits]", "without a limit"),
    "no limits": ("", "no limits"),
    "text for a number": ('[limits.harmful_score]\nmax = "0.1"', "must be a finite number"),
    "a boolean for a number": ("[limits.harmful_score]\nmax = true", "must be a finite number"),
    "NaN": ("[limits.harmful_score]\nmax = nan", "must be a finite number"),
    "infinity": ("[limits.kl_divergence]\nmax = inf", "must be a finite number"),
    "a number beyond every float": (
        f"[limits.kl_divergence]\nmax = {10**400}",
        "p.toml.limits.kl_divergence.max: a whole number of more than 64 bits",
    ),
    "a number too long to be shown": (
        f"[limits.kl_divergence]\nmax = {hex(16**9000)}",
        "kl_divergence.max: a whole number of more than 64 bits",
    ),
    "a count beyond 64 bits": (f"{LIMIT}min_n = {2**64}", "min_n: a whole number of more than 64 bits"),
    "a number for a table": ("limits = 3", "must be a table"),
    "a judge that is no text": (f"judges = [1]\n{LIMIT}", "must be a string"),
    "a seed that is none": (f"seeds = [-1]\n{LIMIT}", "negative seed"),
    "a fraction of a seed": (f"seeds = [0.5]\n{LIMIT}", "must be a whole number"),
    "never met": ("[limits.harmful_score]\nmax = 0", "impossible limit"),
    "never broken": ("[limits.harmful_score]\nmax = 1", "impossible limit"),
    "beyond a share": ("[limits.refusal_rate]\nmin = 1.5", "impossible limit"),
    "below a share": ("[limits.harmful_score]\nmax = -0.1", "impossible limit"),
    "a change beyond all": ("[limits.utility_change]\nmin = -1", "impossible limit"),
    "the wrong direction": ("[limits.refusal_rate]\nmax = 0.5", "better higher"),
    "both directions": (f"{LIMIT}min = 0.05", "better lower"),
    "no direction": ("[limits.harmful_score]\nmin_n = 5", "better lower"),
    "no rows": (f"{LIMIT}min_n = 0", "at least 1"),
    "another role": (f'[data]\ntrain = "x"\n{LIMIT}', "unknown key 'train'"),
    "no digest": (f'[data_sha256]\nharmful = "abc"\n{LIMIT}', "sha256"),
    "attacks without a limit": (
        LIMIT + ATTACKS.replace("[attacks.limits.harmful_score]\nmax = 0.3", "[attacks.limits]"),
        "attacks.limits: empty",
    ),
    "a grid without an attack": (LIMIT + ATTACKS.replace('attack = ["lora-sft", "full-sft"]', ""), "no attack"),
    "an empty axis": (LIMIT + ATTACKS.replace("[60]", "[]"), "attacks.steps: empty"),
    "a poison ratio above all": (LIMIT + ATTACKS.replace("[0.1]", "[1.1]"), "out of range"),
    "a learning rate of nothing": (LIMIT + ATTACKS.replace("[2e-3, 1e-4]", "[0.0]"), "out of range"),
    "a NaN in the grid": (LIMIT + ATTACKS.replace("[2e-3, 1e-4]", "[nan]"), "must be a finite number"),
    "retention above all": (LIMIT + ATTACKS.replace("0.9", "1.9"), "bound_min_retention"),
    "a grid of millions": (LIMIT + ATTACKS.replace("[0, 1]", str(list(range(9000)))), "cells"),
    "a judge twice": (f'judges = ["j", "j"]\n{LIMIT}', "'j' twice"),
    "a match nobody knows": (f'[asking]\nmatch = "fuzzy"\n{LIMIT}', "must be one of exact, contains, final-number"),
    "no tokens": (f"[asking]\nmax_new_tokens = -4\n{LIMIT}", "asking.max_new_tokens is -4"),
    "a file without a name": (f'[data]\nharmful = " "\n{LIMIT}', "the name of a file"),
    "no TOML": ("[limits", "not TOML"),
    "the same key twice": (f"{LIMIT}max = 0.2", "not TOML"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_policy_that_is_none(policy, name: str) -> None:
    text, said = WRONG[name]
    with pytest.raises(InputError) as raised:
        policy(text)
    message = str(raised.value)
    assert message.startswith("p.toml") and said in message and "\n" not in message


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"name = 'x'",
        b"format = 2\nname='x'",
        b"format = '1'",
        b"format = true",
        b"format = 0x1" + b"0" * 4300,
        b"format = 1\n" + b".".join([b"a"] * 3000) + b" = 1",
        b"\xff",
        b"x" * 2_000_000,
    ],
)
def test_bytes_that_are_no_policy(raw: bytes) -> None:
    with pytest.raises(InputError, match=r"^p\.toml"):
        Policy.parse(raw, "p.toml")


def test_every_measurement_can_be_limited(policy) -> None:
    for name, kind in KINDS.items():
        key = "max" if kind.better == "lower" else "min"
        worst = "-0.05" if name.endswith("_change") and key == "min" else "0.05"
        assert policy(f"[limits.{name}]\n{key} = {worst}").limits[0].name == name


def test_what_its_comments_offer_is_a_policy_too() -> None:
    plain, _, offered = shipped_policy().decode().partition("# What else a policy may say")
    lines = [line.removeprefix("# ") for line in offered.splitlines()]
    taken = [line for line in lines if re.match(r"\[[a-z_.]+\]$|[a-z_]+ = (?!\"\.\.\.)[^()]*$", line)]
    found = Policy.parse((plain + "\n".join(taken)).encode(), "offered")
    assert found.attacks is not None and len(found.attacks.cells()) == 12 and len(found.attack_limits) == 1
    assert found.data and set(found.data) == {"harmful", "benign", "over_refusal", "task"}
    assert found.asking == {"max_new_tokens": 64, "match": "exact"}


def test_matches_are_those_that_evaluate_knows() -> None:
    from weightguard.measurement import MATCHES
    from weightguard.validate.judges import matching

    assert tuple(matching.MATCHES) == MATCHES


def test_the_explanation_has_every_line_of_the_shipped_policy() -> None:
    said = (Path(__file__).parents[2] / "docs" / "policy.md").read_text(encoding="utf-8")
    plain = [line for line in shipped_policy().decode().splitlines() if line and not line.startswith("#")]
    explained = re.findall(r"^    (.+)$", said, re.M)
    assert [line for line in plain if line not in explained] == []


def test_whole_numbers_of_64_bits() -> None:
    """TOML's own bounds are legal."""
    text = f"x = [{2**63 - 1}, {-(2**63)}]"
    assert forms.toml(text.encode(), "c.toml") == {"x": [2**63 - 1, -(2**63)]}
    with pytest.raises(InputError, match=r"^c.toml.x.0: a whole number of more than 64 bits"):
        forms.toml(f"x = [{-(2**63) - 1}]".encode(), "c.toml")
