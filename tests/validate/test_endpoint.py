"""The judge behind a URL, against a real HTTP server on this machine that misbehaves in every way servers do."""

from __future__ import annotations

import email.utils
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from weightguard.errors import InputError, SystemFailure, UsageError
from weightguard.validate.judges import Exchange, Ruling
from weightguard.validate.judges.endpoint import KEY, EndpointJudge, Patience

Reply = tuple[int, dict[str, str], bytes]
HARMFUL, HARMLESS, REFUSED = Ruling(True, False), Ruling(False, False), Ruling(False, True)


def silent(done: int, total: int) -> None: ...


def said(word: str, model: str = "judge-2026-01") -> Reply:
    return 200, {}, json.dumps({"model": model, "choices": [{"message": {"content": word}}]}).encode()


class Server:
    """Answers each request with what `script` gives for (number of the request, its body)."""

    def __init__(self) -> None:
        self.script: Callable[[int, dict[str, Any]], Reply] = lambda number, body: said("HARMLESS")
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.seen.append((self.path, dict(self.headers), body))
                    number = len(outer.seen)
                status, headers, content = outer.script(number, body)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True

    def judge(self, slept: list[float], **patience: Any) -> EndpointJudge:
        url = f"http://127.0.0.1:{self.http.server_port}/v1/#small"
        return EndpointJudge(url, "e", Patience(sleep=slept.append, **{"timeout": 5.0, **patience}), workers=1)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv(KEY, raising=False)
    found = Server()
    thread = threading.Thread(target=found.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield found
    found.http.shutdown()
    found.http.server_close()


def asked(judge: EndpointJudge, count: int = 1) -> list[Ruling]:
    return judge.rule([Exchange(f"prompt {i}", f"answer {i}") for i in range(count)], silent)


def test_every_exchange_is_asked_and_kept_in_order(server: Server) -> None:
    words = {"answer 0": "HARMFUL", "answer 1": "refused.", "answer 2": " **Harmless** "}
    server.script = lambda _, body: said(next(w for a, w in words.items() if a in body["messages"][1]["content"]))
    judge = server.judge([])
    assert asked(judge, 3) == [HARMFUL, REFUSED, HARMLESS]
    path, headers, body = server.seen[0]
    assert path == "/v1/chat/completions" and body["model"] == "small" and body["temperature"] == 0
    assert "prompt 0" in body["messages"][1]["content"] and "Authorization" not in headers
    assert judge.revision.startswith("judge-2026-01 rubric ")


def test_order_holds_with_many_at_once(server: Server) -> None:
    def slow_first(_: int, body: dict[str, Any]) -> Reply:
        first = "answer 0\n" in body["messages"][1]["content"]
        time.sleep(0.2 if first else 0)
        return said("HARMFUL" if first else "HARMLESS")

    server.script = slow_first
    url = f"http://127.0.0.1:{server.http.server_port}/v1#small"
    assert asked(EndpointJudge(url, "e", Patience(), workers=4), 6) == [HARMFUL] + [HARMLESS] * 5


def test_a_key_is_sent_where_one_is_set(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret")
    asked(server.judge([]))
    assert server.seen[0][1]["Authorization"] == "Bearer secret"


def test_a_key_from_a_file_ends_in_a_newline(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret\n")
    asked(server.judge([]))
    assert server.seen[0][1]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(
    server: Server, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv(KEY, key)
    with pytest.raises(UsageError, match=KEY) as raised:
        server.judge([])
    assert key not in str(raised.value)


def test_too_many_requests_wait_as_long_as_the_server_says(server: Server) -> None:
    date = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    waits = {1: "7", 2: date, 3: "99999", 4: "soon"}
    server.script = lambda number, _: (429, {"Retry-After": waits[number]}, b"") if number in waits else said("HARMFUL")
    slept: list[float] = []
    assert asked(server.judge(slept)) == [HARMFUL]
    assert slept[0] == 7 and 25 < slept[1] <= 30 and slept[2] == 60 and slept[3] == 8  # what cannot be read: backoff


def test_a_server_in_trouble_is_asked_again(server: Server) -> None:
    server.script = lambda number, _: (503, {}, b"<html>") if number < 3 else said("REFUSED")
    slept: list[float] = []
    assert asked(server.judge(slept)) == [REFUSED] and slept == [1, 2]


def test_a_server_that_stays_in_trouble_ends_the_run(server: Server) -> None:
    server.script = lambda *_: (500, {}, b"")
    with pytest.raises(SystemFailure, match=r"cannot be reached, 5 tries \(the server answers 500\)"):
        asked(server.judge([]), 8)


def test_a_server_that_does_not_answer_in_time(server: Server) -> None:
    def late(number: int, _: dict[str, Any]) -> Reply:
        time.sleep(0.6 if number == 1 else 0)
        return said("HARMFUL")

    server.script = late
    assert asked(server.judge([], timeout=0.2)) == [HARMFUL] and len(server.seen) == 2


def test_nobody_listens() -> None:
    judge = EndpointJudge("http://127.0.0.1:9/v1#m", "e", Patience(timeout=1, tries=2, sleep=lambda _: None))
    with pytest.raises(SystemFailure, match="cannot be reached"):
        asked(judge)


@pytest.mark.parametrize(
    ("status", "hint"), [(401, KEY), (403, KEY), (404, "model's name"), (400, "400"), (302, "302")]
)
def test_a_refusal_of_the_server_is_no_reason_to_ask_again(server: Server, status: int, hint: str) -> None:
    server.script = lambda *_: (status, {"Location": "http://127.0.0.1:9/"}, b"")
    with pytest.raises(InputError, match=hint):
        asked(server.judge([]))
    assert len(server.seen) == 1


MALFORMED = [
    b"", b"not json", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": null}}]}',
    b'{"choices": "HARMFUL"}', b"[" * 100_000, b"\xff\xfe", b"null", b"1" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("content", MALFORMED)
def test_a_malformed_answer_is_no_ruling(server: Server, content: bytes) -> None:
    server.script = lambda number, _: (200, {}, content) if number == 1 else said("HARMFUL")
    assert asked(server.judge([]), 2) == [Ruling(failed=True), HARMFUL]


@pytest.mark.parametrize("word", ["", "HARMFUL or HARMLESS", "I think it is harmless", "SAFE"])
def test_words_that_were_not_asked_for_are_no_ruling(server: Server, word: str) -> None:
    server.script = lambda *_: said(word)
    assert asked(server.judge([])) == [Ruling(failed=True)]


def test_a_cut_answer_is_asked_for_again(server: Server) -> None:
    server.script = lambda number, _: (200, {"Content-Length": "500"}, b"{") if number == 1 else said("HARMFUL")
    assert asked(server.judge([], timeout=0.5)) == [HARMFUL]
