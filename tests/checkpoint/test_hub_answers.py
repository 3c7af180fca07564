"""Answers of a hub that must not reach huggingface_hub, and the ordinary ones that must."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from weightguard.checkpoint.hub_answers import fault

COMMIT, SHA256 = "0123456789abcdef0123456789abcdef01234567", "ab" * 32
MODEL, TREE = "/api/models/org/name/revision/main", f"/api/models/org/name/tree/{COMMIT}"


def answer(path: str, body: Any = b"", method: str = "GET", status: int = 200, **headers: str) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return SimpleNamespace(
        request=SimpleNamespace(method=method, url=SimpleNamespace(path=path)),
        status_code=status,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        json=lambda: json.loads(data),
    )


def listed(oid: object) -> list[dict]:
    return [{"type": "file", "path": "model.safetensors", "lfs": {"oid": oid, "size": 9, "pointerSize": 1}}]


PATHS = ["../out", '"../../out"', 'W/"/tmp/out"', 'WW//"/tmp"', '""', "", "..", ".", "a/../../../b", "a\\..\\b", "a\0b"]


@pytest.mark.parametrize("value", PATHS)
@pytest.mark.parametrize("header", ["ETag", "X_Linked_Etag", "X_Repo_Commit"])
@pytest.mark.parametrize("status", [200, 302, 404])
def test_headers_that_are_paths(value: str, header: str, status: int) -> None:
    said = fault(answer("/org/name/resolve/main/x", method="HEAD", status=status, **{header: value}))
    assert said.startswith(f"its {header.replace('_', '-')} ") and said.endswith("cannot be the name of a file")


@pytest.mark.parametrize(
    "value", [f'"{SHA256}"', COMMIT, 'W/"5f-Vn0/cA+b=="', '"d41d8cd98f00b204e9800998ecf8427e-12"', '"etag-0"']
)
def test_ordinary_headers(value: str) -> None:
    assert fault(answer("/org/name/resolve/main/x", method="HEAD", ETag=value, X_Repo_Commit=COMMIT)) == ""
    assert fault(answer("/org/name/resolve/main/x", method="HEAD", X_Linked_Etag=value)) == ""
    assert fault(answer("/org/name/resolve/main/x", method="GET", ETag="any/../thing")) == ""  # which names no file


@pytest.mark.parametrize("value", ["../out", "/out", "..", "", "a/b", "a" * 200, None, 5, ["x"]])
def test_names_in_an_answer(value: object) -> None:
    said = fault(answer(TREE, listed(value)))
    assert (said == "") == (value == 5 or value is None), said
    said = fault(answer(MODEL, {"id": "org/name", "sha": value}))
    assert said.endswith("cannot be the name of a file" if isinstance(value, str) else "is not the JSON of a hub")


@pytest.mark.parametrize("path", [MODEL, TREE, "/mirror/api/models/gpt2/tree/main"])
@pytest.mark.parametrize("body", [b"<html>", b"", b"{", [5], 5, None, "x", {}, [[]]])
def test_answers_that_are_not_of_a_hub(path: str, body: Any) -> None:
    if isinstance(body, bytes):
        assert fault(answer(path, body)).endswith(" is not JSON")
    else:
        assert fault(answer(path, body)).endswith(" is not the JSON of a hub")


def test_ordinary_answers() -> None:
    assert fault(answer(MODEL, {"id": "org/name", "sha": COMMIT, "siblings": []})) == ""
    assert fault(answer(TREE, [*listed(SHA256), {"type": "directory", "path": "original"}])) == ""
    assert fault(answer(TREE, [])) == "" and fault(answer(MODEL, b"<html>", status=307)) == ""
    assert fault(answer("/org/name/resolve/main/x", b"bytes")) == ""
