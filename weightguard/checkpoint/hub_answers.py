"""What a hub may answer, checked before huggingface_hub uses it: it makes names of files out of some of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_NAME = re.compile(r"[\w.=:+-]{0,127}[\w=:+-]", re.ASCII)  # of one file: no path, neither . nor ..
_API = re.compile(r"/api/models/(?:[^/]+/)?[^/]+/(revision|tree)/")


def fault(response: Any) -> str:
    """What is wrong with an answer, "" if nothing. Of downloads only what is asked of a file first is looked at."""
    if response.request.method == "HEAD":
        return _headers(response.headers)
    asked = _API.search(response.request.url.path)
    if asked is None or response.status_code != 200:
        return ""
    try:
        said = response.json()
    except ValueError:
        return f"the answer to {asked[0]} is not JSON"
    named = _listed(said) if asked[1] == "tree" else _model(said)
    return f"the answer to {asked[0]} is not the JSON of a hub" if named is None else _first_path(named)


Named = list[tuple[str, str]]  # (what it is, its value) of what becomes the name of a file


def _headers(headers: Any) -> str:
    for what in ("ETag", "X-Linked-Etag"):
        # As huggingface_hub takes it off. A redirect's own tag may hold a slash, which leads nowhere else.
        tag = headers.get(what, "tag").lstrip("W/").strip('"')
        parts = re.split(r"[/\\]", tag)
        if not parts[0] or ".." in parts or tag == "." or not tag.isprintable():
            return _wrong(what, tag)
    commit = headers.get("X-Repo-Commit")
    return "" if commit is None else _first_path([("X-Repo-Commit", commit)])


def _model(said: Any) -> Named | None:
    known = isinstance(said, dict) and isinstance(said.get("id"), str) and isinstance(said.get("sha"), str)
    return [("sha", said["sha"])] if known else None


def _listed(said: Any) -> Named | None:
    if not isinstance(said, list) or not all(isinstance(each, dict) for each in said):
        return None
    return [("oid", str(oid)) for each in said for oid in _digests(each)]


def _digests(entry: dict) -> Iterator[object]:
    stored = entry.get("lfs")
    if isinstance(stored, dict):
        yield from (stored[key] for key in ("oid", "sha256") if key in stored)


def _first_path(named: Named) -> str:
    return next((_wrong(what, value) for what, value in named if not _NAME.fullmatch(value)), "")


def _wrong(what: str, value: str) -> str:
    return f"its {what} {value[:60]!a} cannot be the name of a file"
