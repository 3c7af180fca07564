"""Hub data sets, against a small hub of our own in this process; the reader runs in a second one (HF_ENDPOINT)."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40


def _jsonl(*rows: dict) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _labelled(split: str) -> bytes:
    rows = [
        {"prompt": f"{split} {n}", "response": "r", "category": {"a": True, "b": False}, "is_safe": n % 2 == 0}
        for n in range(8)
    ]
    return gzip.compress(_jsonl(*rows), mtime=0)


PARTS = [_jsonl({"text": "one"}, {"text": "two"}), _jsonl({"text": "three"})]
SETS = {
    "org/parts": {
        "README.md": b"hi",
        "data/train-00000-of-00002.jsonl": PARTS[0],
        "data/train-00001-of-00002.jsonl": PARTS[1],
    },
    "PKU-Alignment/BeaverTails": {
        f"round0/{size}/{split}.jsonl.gz": _labelled(f"{size} {split}")
        for size in ("30k", "330k")
        for split in ("train", "test")
    },
    "org/readme": {"README.md": b"hi"},
    "org/damaged": {"train.json.gz": gzip.compress(b"[]" * 500, mtime=0)[:-9]},
    "org/gated": {"train.csv": b"prompt\nx\n"},
    "org/limited": {},
    "org/broken": {},
    "org/cut": {"train.csv": b"prompt\n" + b"x\n" * 5000},
}
REFUSED = {"org/limited": 429, "org/broken": 503, "org/forbidden": 403}


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[0] == "api":
            return self._info("/".join(parts[2:4]), parts[5] if len(parts) > 5 else None)
        return self._file("/".join(parts[1:3]), "/".join(parts[5:]), body)

    def _info(self, name: str, revision: str | None) -> None:
        if name in REFUSED:
            return self._send(REFUSED[name])
        if name not in SETS:
            return self._send(401)  # what the hub says of a data set it does not show
        if revision not in (None, "v1", COMMIT):
            return self._send(404, {"X-Error-Code": "RevisionNotFound"})
        listed = [{"rfilename": file} for file in SETS[name]]
        return self._send(200, body=json.dumps({"id": name, "sha": COMMIT, "siblings": listed}).encode())

    def _file(self, name: str, file: str, body: bool) -> None:
        if name == "org/gated":
            return self._send(403, {"X-Error-Code": "GatedRepo"})
        content = SETS[name][file]
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if name == "org/cut" and body:  # promises all, sends half, hangs up
            self._send(200, {**headers, "Content-Length": str(len(content))}, content[: len(content) // 2])
            self.close_connection = True
            return None
        return self._send(200, headers, content, body)

    def _send(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"", whole: bool = True) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if whole and self.command == "GET":
            self.wfile.write(body)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


READER = """
import json, sys
from weightguard.data import read_rows
from weightguard.errors import WeightguardError
for ref, options in json.loads(sys.argv[1]):
    try:
        found = read_rows(ref, **options)
        rows = [(row.prompt, row.category, row.is_safe) for row in found.rows]
        answer = [found.source, found.sha256, found.skipped, found.notes, rows]
    except WeightguardError as error:
        answer = [type(error).__name__, error.exit_code, str(error)]
    print(json.dumps(answer))
"""


def _read(endpoint: str, cache: Path, asked: list, **environment: str) -> list:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    kept |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-c", READER, json.dumps(asked)]
    done = subprocess.run(command, env=kept | environment, cwd=cache, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def answers(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    asked = ["org/parts", "org/parts@v1", "org/parts@v2", "PKU-Alignment/BeaverTails", *FAILURES]
    found = _read(endpoint, tmp_path_factory.mktemp("cache"), [[ref, {}] for ref in asked])
    return dict(zip(asked, found, strict=True))


FAILURES = {
    "org/none": [
        "DataError",
        3,
        "org/none: no such data set or file on the hub, or not visible to you; check the id, or log in",
    ],
    "org/gated": ["DataError", 3, "org/gated: gated; accept its terms on the hub and log in (hf auth login)"],
    "org/forbidden": [
        "DataError",
        3,
        "org/forbidden: the hub refuses access (403); log in with a token that may read it (hf auth login)",
    ],
    "org/readme": [
        "DataError",
        3,
        "org/readme: no data files (.jsonl .json .csv .parquet .jsonl.gz .json.gz); convert it to one of them",
    ],
    "org/limited": ["SystemFailure", 5, "org/limited: the hub answered 429; try again later"],
    "org/broken": ["SystemFailure", 5, "org/broken: the hub answered 503; try again later"],
    "org/cut": [
        "SystemFailure",
        5,
        "org/cut: the hub could not be reached or was cut off (RemoteProtocolError); try again later",
    ],
}


@pytest.mark.parametrize("ref", FAILURES)
def test_a_refusal_is_the_inputs_fault_and_an_outage_the_systems(answers: dict[str, list], ref: str) -> None:
    assert answers[ref] == FAILURES[ref]


def test_damaged_compressed_file_is_named(endpoint: str, tmp_path: Path) -> None:
    [(kind, code, message)] = _read(endpoint, tmp_path, [["org/damaged", {}]])
    assert (kind, code) == ("DataError", 3)
    assert message.startswith("org/damaged: train.json.gz: damaged compressed data (")


def test_all_files_of_a_split_are_read_in_order_at_one_commit(answers: dict[str, list]) -> None:
    source, sha256, skipped, notes, rows = answers["org/parts"]
    assert source == f"org/parts@{COMMIT}"
    assert [row[0] for row in rows] == ["one", "two", "three"]
    assert sha256 == hashlib.sha256(b"".join(PARTS)).hexdigest()
    assert (skipped, notes) == (0, [f"file data/train-0000{n}-of-00002.jsonl" for n in (0, 1)])


def test_a_revision_is_resolved_and_an_unknown_one_refused(answers: dict[str, list]) -> None:
    assert answers["org/parts@v1"] == answers["org/parts"]
    message = "org/parts: no such revision on the hub; check what follows the @"
    assert answers["org/parts@v2"] == ["DataError", 3, message]


def test_beavertails_as_published_is_the_unsafe_rows_of_30k_train(answers: dict[str, list]) -> None:
    _, sha256, skipped, notes, rows = answers["PKU-Alignment/BeaverTails"]
    assert rows == [[f"30k train {n}", "a", False] for n in (1, 3, 5, 7)]
    assert skipped == 4
    assert notes == ["split 30k_train", "rows with is_safe false", "file round0/30k/train.jsonl.gz"]
    assert sha256 == hashlib.sha256(_labelled("30k train")).hexdigest()


def test_a_limit_counts_kept_rows_and_fetches_no_file_beyond_it(endpoint: str, tmp_path: Path) -> None:
    asked = [["PKU-Alignment/BeaverTails", {"limit": 2, "split": "330k_test"}], ["org/parts", {"limit": 2}]]
    tails, parts = _read(endpoint, tmp_path, asked)
    assert [row[0] for row in tails[4]] == ["330k test 1", "330k test 3"]
    assert parts[3] == ["file data/train-00000-of-00002.jsonl", "limit 2: the first 2 rows"]
    assert not list(tmp_path.rglob("train-00001-of-00002.jsonl"))
    again, whole = _read(endpoint, tmp_path, [asked[1], ["org/parts", {}]], HF_HUB_OFFLINE="1")
    assert again == parts
    # half a split is never taken for the whole
    told = "org/parts: offline mode is on and the cache lacks it; unset HF_HUB_OFFLINE to fetch it"
    assert whole == ["SystemFailure", 5, told]


def test_offline_reads_what_the_cache_holds_and_says_what_it_lacks(endpoint: str, tmp_path: Path) -> None:
    [online] = _read(endpoint, tmp_path, [["org/parts", {}]])
    cached, pinned, absent, moved = _read(
        endpoint,
        tmp_path,
        [[ref, {}] for ref in ("org/parts", f"org/parts@{COMMIT}", "org/none", f"org/parts@{OTHER}")],
        HF_HUB_OFFLINE="1",
    )
    assert cached == pinned == online
    told = "offline, and the cache does not hold"
    assert absent == ["SystemFailure", 5, f"org/none: {told} it; unset HF_HUB_OFFLINE to fetch it"]
    assert moved[:2] == ["SystemFailure", 5] and moved[2].startswith(f"org/parts: {told} revision fff")


def test_a_hub_that_is_not_there_is_a_system_failure(tmp_path: Path) -> None:
    [answer] = _read("http://127.0.0.1:9", tmp_path, [["org/parts", {}]])
    assert answer == [
        "SystemFailure",
        5,
        "org/parts: the hub could not be reached or was cut off (ConnectError); try again later",
    ]


def test_a_local_path_wins_over_a_hub_id(endpoint: str, tmp_path: Path) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "parts").write_text("here")
    [answer] = _read(endpoint, tmp_path, [["org/parts", {}]])
    assert answer[0] == "DataError" and answer[2].startswith("org/parts: unknown suffix")
