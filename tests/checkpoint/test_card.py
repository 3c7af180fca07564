"""Front matter is read where there is some, and nothing that a card holds stops or slows anything."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weightguard.checkpoint.card import base_model, front_matter

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{n}: &{n} [{','.join([f'*{p}'] * 9)}]\n" for p, n in zip("abcdefg", "bcdefgh", strict=True)
)
ODD = {
    "alias": "a: &x [1]\nb: *x",
    "bomb": BOMB,
    "list": "- a\n- b",
    "scalar": "just words",
    "nothing": "",
    "syntax": "a: [1, 2",
    "tab": "a:\n\t- b",
    "python object": "a: !!python/object/apply:os.system ['true']",
    "unknown tag": "a: !thing b",
    "no such day": "a: 2024-13-45",
    "empty int": "a: !!int ''",
    "not a bool": "a: !!bool maybe",
    "list as key": "? [a]\n: b",
    "deep": "a: " + "[" * 65 + "]" * 65,
    "very deep": "a: " + "[" * 200_000,
    "base 60": "a: " + "1:" * 200_000 + "1",
    "long integer": "a: " + "1" * 200_000,
    "large": "a: " + "x " * 300_000,
    "control character": "a: \x07",
}


def card(directory: Path, front: str, body: str = "# Title\n\n---\ntext\n", newline: str = "\n") -> str:
    text = f"---\n{front}\n---\n{body}".replace("\n", newline)
    (directory / "README.md").write_bytes(text.encode())
    return text


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_front_matter(tmp_path: Path, newline: str) -> None:
    card(tmp_path, "license: mit\ntags:\n- a\nname: é", newline=newline)
    found, raw, body = front_matter(tmp_path)
    assert found == {"license": "mit", "tags": ["a"], "name": "é"}
    assert raw == newline.join(["license: mit", "tags:", "- a", "name: é", ""])
    assert body == newline.join(["# Title", "", "---", "text", ""])


def test_front_matter_that_is_the_whole_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("\ufeff\n---\na: 1\n---")
    assert front_matter(tmp_path) == ({"a": 1}, "a: 1\n", "")


@pytest.mark.parametrize("text", ["", "# Title\n---\na: 1\n---\n", "---\na: 1\n", "----\na: 1\n---\n"])
def test_no_front_matter(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert front_matter(tmp_path) == ({}, "", text)


@pytest.mark.parametrize("case", ODD)
def test_malformed_front_matter(tmp_path: Path, case: str) -> None:
    text = card(tmp_path, ODD[case])
    begin = time.perf_counter()
    assert front_matter(tmp_path) == ({}, "", text)
    assert time.perf_counter() - begin < 1


def test_many_values_are_taken(tmp_path: Path) -> None:
    card(tmp_path, "results:\n" + "".join(f"- name: x{i}\n  value: {i}.5\n" for i in range(5000)))
    assert len(front_matter(tmp_path)[0]["results"]) == 5000


def test_no_card(tmp_path: Path) -> None:
    assert front_matter(tmp_path) == ({}, "", "") == front_matter(tmp_path / "missing")
    os.mkfifo(tmp_path / "README.md")
    assert front_matter(tmp_path) == ({}, "", "")


def test_link_out_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "secret").write_text("---\na: 1\n---\n")
    (tmp_path / "model" / "README.md").symlink_to(tmp_path / "secret")
    assert front_matter(tmp_path / "model") == ({}, "", "")


def test_bounded_and_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\na: 1\n---\n\xff" + b"x" * 2_000_000)
    found, _, body = front_matter(tmp_path)
    assert found == {"a": 1} and body.startswith("\ufffdx") and len(body) == 1_000_000 - 13


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("base_model: org/name", "org/name"),
        ("base_model: [org/name]", "org/name"),
        ("base_model:\n- org/name\n- 5", "org/name"),
        ("base_model: [org/a, org/b]", None),
        ("base_model: []", None),
        ("base_model: ' '", None),
        ("base_model: 5", None),
        ("base_model: {a: b}", None),
        ("base_model:", None),
        ("license: mit", None),
    ],
)
def test_base_model(tmp_path: Path, said: str, name: str | None) -> None:
    card(tmp_path, said)
    assert base_model(tmp_path) == name


@given(st.text() | st.text(st.sampled_from("-: \n[]{}&*!|>'\"#%@?,a1~<=.\t")))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_never_raises(tmp_path: Path, front: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\nbody", "utf-8", newline="")
    found, _, _ = front_matter(tmp_path)
    assert isinstance(found, dict) and (base_model(tmp_path) or "x")
