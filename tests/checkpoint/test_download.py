"""The hub, played by a server on this machine; every call runs in a process of its own, with a cache of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"w" * 3000,
    "additional_chat_templates/tool.jinja": b"t",
    "pytorch_model.bin": b"pickle",
    "modeling_evil.py": b"code",
    "original/tokenizer.model": b"t",
    "checkpoint-5/config.json": b"{}",
    "checkpoint-5/model.safetensors": b"earlier",
    "consolidated.safetensors": b"again",
}
# Prints one line of JSON: what was resolved, or which error came up; and how long it took.
CLIENT = """
import json, sys, time
from weightguard.checkpoint import download, hub
for name, value in json.loads(sys.argv[2]).items(): setattr(download, name, value)
begin = time.monotonic()
try:
    found = hub.resolve(sys.argv[1], offline=sys.argv[3] == "offline")
    said = {"repo": found.repo, "revision": found.revision, "label": found.label, "directory": str(found.directory)}
except Exception as error:
    said = {"error": str(error), "code": getattr(error, "exit_code", type(error).__name__)}
print(json.dumps(said | {"seconds": time.monotonic() - begin}))
"""
Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.endswith("/api/agent-harnesses"):
            return self.say(503, Retry_After="3600")  # asked in passing: must not matter
        self.server.seen.append((self.command, path, self.headers.get("Range")))
        for (command, part), answer in self.server.rules.items():
            if command == self.command and part in path:
                return answer(self)
        if path.startswith("/api/models/org/name/revision/"):
            return self.say(200, json.dumps({"id": "org/name", "sha": COMMIT}).encode())
        if "/tree/" in path:
            tree = [{"type": "file", "path": name, "size": len(data), "oid": name} for name, data in FILES.items()]
            return self.say(200, json.dumps(tree).encode())
        name = path.partition(f"/org/name/resolve/{COMMIT}/")[2]
        self.say(200, FILES[name], ETag=f'"etag-{list(FILES).index(name)}"', **{"X-Repo-Commit": COMMIT})

    def say(self, status: int, body: bytes = b"", send: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:send])
            self.close_connection = send is not None


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, home: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.rules: dict[tuple[str, str], Answer] = {}
        self.seen: list[tuple[str, str, str | None]] = []
        self.home = home

    def start(self, ref: str, offline: bool = False, settings: dict | None = None, **env: str) -> subprocess.Popen:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
        kept |= {"HF_HOME": str(self.home), "HF_ENDPOINT": f"http://127.0.0.1:{self.server_port}"} | env
        command = [sys.executable, "-c", CLIENT, ref, json.dumps(settings or {}), "offline" if offline else "online"]
        return subprocess.Popen(command, env=kept, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def resolve(self, ref: str = "org/name", **options) -> dict:
        out, err = self.start(ref, **options).communicate(timeout=120)
        assert "Traceback" not in err, err
        said = json.loads(out)
        assert "\n" not in said.get("error", "")
        return said | {"stderr": err}


def words(said: dict) -> list[str]:
    """What stands on stderr beside progress."""
    progress = r"(Fetching|Downloading|Reconstructing)[^\r\n]*?\|[^\r\n]*?\|[^\r\n]*?\[[^\r\n]*?\]"
    return re.sub(progress, "", said["stderr"]).split()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    server = Hub(tmp_path / "home")
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def fail(status: int, **headers: str) -> Answer:
    return lambda handler: handler.say(status, b"{}", **headers)


def test_files_and_commit(hub: Hub) -> None:
    found = hub.resolve("org/name@v1")
    assert (found["repo"], found["revision"], found["label"]) == ("org/name", COMMIT, f"org/name@{COMMIT[:12]}")
    directory = Path(found["directory"])
    assert ("GET", "/api/models/org/name/revision/v1", None) in hub.seen
    names = {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}
    assert names == {"config.json", "model.safetensors", "additional_chat_templates/tool.jinja"}
    assert (directory / "model.safetensors").read_bytes() == FILES["model.safetensors"]


@pytest.mark.parametrize(
    ("part", "headers", "words"),
    [
        ("/resolve/", {"X_Error_Code": "GatedRepo"}, "org/name: gated (HTTP {}): accept the terms at "),
        ("/resolve/", {}, "org/name: gated, private or not there (HTTP {}): accept the terms at "),
        ("/api/", {}, "org/name: gated, private or not there (HTTP {}): accept the terms at "),
    ],
)
@pytest.mark.parametrize("status", [401, 403])
def test_gated(hub: Hub, part: str, headers: dict, words: str, status: int) -> None:
    hub.rules |= {(verb, part): fail(status, **headers) for verb in ("GET", "HEAD")}
    said = hub.resolve()
    assert said["code"] == 3 and said["error"].startswith(words.format(status))
    assert said["error"].endswith("/org/name and log in with `hf auth login`")


def test_no_such_repository(hub: Hub) -> None:
    hub.rules["GET", "/api/"] = fail(404, X_Error_Code="RepoNotFound")
    said = hub.resolve()
    assert said["code"] == 3 and said["error"].startswith("no such model: org/name is neither a directory nor at http")


@pytest.mark.parametrize(("verb", "headers"), [("HEAD", {"X_Error_Code": "EntryNotFound"}), ("GET", {})])
def test_a_file_that_is_listed_and_not_there(hub: Hub, verb: str, headers: dict) -> None:
    hub.rules[verb, "model.safe"] = fail(404, **headers)
    said = hub.resolve()
    assert said["code"] == 3
    assert said["error"] == "org/name: the hub lists 'model.safetensors', but does not have it (HTTP 404)"


def test_disabled(hub: Hub) -> None:
    hub.rules["GET", "model.safe"] = fail(403, X_Error_Message="Access to this resource is disabled.")
    said = hub.resolve()
    assert said["code"] == 3 and said["error"].startswith("org/name: disabled by the hub")


def test_no_such_revision(hub: Hub) -> None:
    hub.rules["GET", "/api/"] = fail(404, X_Error_Code="RevisionNotFound")
    said = hub.resolve("org/name@v9")
    assert said["code"] == 3 and said["error"].startswith("org/name@v9: the repository has no such revision")


@pytest.mark.parametrize("where", [("GET", "/api/"), ("GET", "/tree/"), ("HEAD", "model.safe"), ("GET", "model.safe")])
def test_rate_limit_is_said_and_not_waited_for(hub: Hub, where: tuple[str, str]) -> None:
    hub.rules[where] = fail(429, Retry_After="60")
    said = hub.resolve()
    assert said["code"] == 5 and said["seconds"] < 10
    assert said["error"] == "org/name: the hub does not deliver: HTTP 429, Retry-After 60 s; try again later"


def test_rate_limit_in_the_other_header(hub: Hub) -> None:
    hub.rules["GET", "model.safe"] = fail(429, RateLimit='"api";r=0;t=55')
    said = hub.resolve()
    assert said["seconds"] < 10 and "HTTP 429, Retry-After 55 s" in said["error"]


def test_short_rate_limit_is_waited_for(hub: Hub) -> None:
    def once(handler: Handler) -> None:
        hub.rules.clear()
        handler.say(429, Retry_After="1")

    hub.rules["GET", "model.safe"] = once
    said = hub.resolve()
    assert said["revision"] == COMMIT and words(said) == []
    hub.rules["GET", "model.safe"] = once
    shutil.rmtree(hub.home)
    assert "429" in words(hub.resolve(HF_HUB_VERBOSITY="info"))  # for whoever asks for it


@pytest.mark.parametrize("where", [("GET", "/api/"), ("GET", "/tree/"), ("HEAD", "model.safe"), ("GET", "model.safe")])
def test_server_error(hub: Hub, where: tuple[str, str]) -> None:
    hub.rules[where] = fail(503)
    said = hub.resolve(settings={"PATIENCE": 1.0})
    assert said["code"] == 5 and said["seconds"] < 10 and "HTTP 503" in said["error"]
    assert words(said) == []


@pytest.mark.full
@pytest.mark.parametrize("where", [("GET", "/tree/"), ("HEAD", "model.safe"), ("GET", "model.safe")])
@pytest.mark.parametrize("trouble", ["500", "hang", "cut", "cut early"])
def test_retries_end_after_about_twenty_seconds(hub: Hub, where: tuple[str, str], trouble: str) -> None:
    cut: Answer = lambda handler: handler.say(200, b"x" * 30_000_000, send=12_000_000)  # noqa: E731
    early: Answer = lambda handler: handler.say(200, b"w" * 3000, send=1000)  # noqa: E731
    hub.rules[where] = {"500": fail(500), "hang": lambda _: time.sleep(60), "cut": cut, "cut early": early}[trouble]
    if trouble.startswith("cut") and where != ("GET", "model.safe"):
        pytest.skip("only a download can be cut")
    said = hub.resolve()
    print(where, trouble, said["seconds"])
    assert said["code"] == 5 and said["seconds"] < 25
    assert ("the hub does not deliver: the download was cut again and again" in said["error"]) == ("cut" in trouble)


@pytest.mark.parametrize("where", [("GET", "/api/"), ("HEAD", "model.safe"), ("GET", "model.safe")])
def test_server_that_never_answers(hub: Hub, where: tuple[str, str]) -> None:
    hub.rules[where] = lambda handler: time.sleep(60)
    limits = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}
    said = hub.resolve(settings={"PATIENCE": 1.0, "TIMEOUT": 1.0}, **limits)
    assert said["code"] == 5 and said["seconds"] < 15 and "ReadTimeout" in said["error"]


def test_a_header_that_is_a_path(hub: Hub) -> None:
    headers = {"X_Linked_Etag": '"../../../../../out"', "X_Repo_Commit": COMMIT}
    hub.rules["HEAD", "model.safe"] = lambda handler: handler.say(200, b"w" * 3000, **headers)
    said = hub.resolve()
    assert said["code"] == 5 and said["error"].startswith(
        "org/name: its X-Linked-Etag '../../../../../out' cannot be the name of a file; is http"
    )
    assert not list(hub.home.parent.rglob("*out*"))


@pytest.mark.parametrize("part", ["/revision/", "/tree/"])
def test_an_answer_that_is_a_page(hub: Hub, part: str) -> None:
    hub.rules["GET", part] = lambda handler: handler.say(200, b"<html>")
    said = hub.resolve()
    assert said["code"] == 5 and said["stderr"] == ""
    assert said["error"].startswith(f"org/name: the answer to /api/models/org/name{part} is not JSON; is http")


def test_cut_download(hub: Hub) -> None:
    hub.rules["GET", "model.safe"] = lambda handler: handler.say(200, b"w" * 3000, send=1000)
    said = hub.resolve(settings={"TRIES": 2})
    assert said["code"] == 5 and said["seconds"] < 15
    assert said["error"].startswith("org/name: the hub does not deliver: the download was cut")
    assert words(said) == []
    again = hub.resolve(offline=True)
    assert again["code"] == 3 and again["error"].startswith(
        "org/name: no such directory, and only in part in the local cache, and offline"
    )


def test_download_cut_again_and_again_at_the_same_place(hub: Hub) -> None:
    # huggingface_hub takes every 10 MB for progress and would begin again for ever: this server ignores Range.
    hub.rules["GET", "model.safe"] = lambda handler: handler.say(200, b"x" * 30_000_000, send=12_000_000)
    hub.rules["HEAD", "model.safe"] = lambda h: h.say(200, b"x" * 30_000_000, ETag='"e"', X_Repo_Commit=COMMIT)
    said = hub.resolve(settings={"TRIES": 3})
    assert said["code"] == 5 and said["seconds"] < 20
    assert "cut again and again" in said["error"]


def test_no_server(hub: Hub) -> None:
    said = hub.resolve(HF_ENDPOINT="http://127.0.0.1:9")
    assert (
        said["code"] == 5
        and "no such directory, and the connection to http://127.0.0.1:9 failed (ConnectError)" in said["error"]
    )


def test_an_endpoint_that_is_none(hub: Hub) -> None:
    said = hub.resolve(HF_ENDPOINT="localhost:9")
    assert said["code"] == 5
    assert (
        said["error"]
        == "org/name: no such directory, and HF_ENDPOINT=localhost:9 is no address that begins with http:// or https://"
    )


def test_an_empty_endpoint_is_none(hub: Hub) -> None:
    said = hub.resolve(HF_ENDPOINT="", HTTPS_PROXY="http://127.0.0.1:9")  # which leads nowhere
    assert said["error"].startswith("org/name: no such directory, and the connection to https://huggingface.co failed")


@pytest.mark.parametrize("way", [{"offline": True}, {"HF_HUB_OFFLINE": "1"}])
def test_offline(hub: Hub, way: dict) -> None:
    said = hub.resolve(**way)
    assert said["code"] == 3 and said["error"].startswith(
        "org/name: no such directory, and not in the local cache, and offline"
    )
    assert not hub.seen
    hub.resolve()
    hub.seen.clear()
    assert hub.resolve(**way)["revision"] == COMMIT
    assert not hub.seen


def test_cache_is_used_when_the_hub_is_down_and_that_is_said(hub: Hub) -> None:
    hub.resolve()
    for answer in (fail(500), fail(429, Retry_After="60")):
        hub.rules["GET", "/api/"] = answer
        said = hub.resolve()
        assert said["revision"] == COMMIT and "the copy in the cache is used" in said["stderr"]


def test_cache_that_cannot_be_written(hub: Hub) -> None:
    hub.home.write_text("a file")
    said = hub.resolve()
    assert said["code"] == 5 and said["error"].startswith("org/name: the hub cache cannot be written: ")
    assert words(said) == []


def test_local_path_asks_nobody(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert hub.resolve(str(tmp_path))["directory"] == str(tmp_path)
    assert not hub.seen


def test_interrupt_ends_a_running_download(hub: Hub) -> None:
    arrived = threading.Event()

    def slowly(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "3000")
        handler.end_headers()
        arrived.set()
        for _ in range(3000):
            handler.wfile.write(b"w")
            time.sleep(0.02)

    hub.rules["GET", "model.safe"] = slowly
    process = hub.start("org/name")
    assert arrived.wait(60)
    time.sleep(0.5)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert time.monotonic() - begin < 2.5 and process.returncode != 0
