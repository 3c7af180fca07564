"""One snapshot from the hub. huggingface_hub does the work; this file bounds its patience and puts its errors in words.

Left alone, huggingface_hub 2.4 sleeps out any Retry-After up to five times, asks for the list of files without a
timeout, begins again for ever where a server cuts a download at the same place, and makes ^C wait for running files.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from weightguard.checkpoint.hub_answers import fault
from weightguard.errors import CheckpointError, SystemFailure, WeightguardError

PATIENCE = 15.0  # seconds from the first failure of a request within which it is tried again
TIMEOUT = 10.0  # seconds without an answer; HF_HUB_DOWNLOAD_TIMEOUT and HF_HUB_ETAG_TIMEOUT can raise it
TRIES = 6  # of one request that gets no further, however fast it fails

# Texts and safetensors of the top folder. No pickles, no code, no second copy of the weights in another layout.
WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.md", "LICENSE*", "NOTICE*"]
UNWANTED = ["*/*.safetensors", "*/*.json", "*/*.txt", "*/*.model", "*/*.tiktoken", "*/*.md", "consolidated*", "*.py"]

# hf_xet reads these when it starts. With its own values a storage server that answers 500 is tried for minutes, and one
# that does not answer at all for a quarter of an hour.
_XET = {
    "HF_XET_CLIENT_RETRY_BASE_DELAY": "1s",
    "HF_XET_CLIENT_RETRY_MAX_DURATION": "4s",
    "HF_XET_CLIENT_READ_TIMEOUT": "30s",
}
_CUT = "the download was cut again and again"
_ONE_AT_A_TIME = threading.Lock()  # the client factory of huggingface_hub belongs to the process
_log = logging.getLogger(__name__)


def snapshot(repo: str, revision: str | None, *, offline: bool = False) -> Path:
    """The directory of `repo` at `revision` in the hub cache, completed over the network unless `offline`.

    The name of the directory is the commit. Errors: CheckpointError (not there, gated, not cached), SystemFailure.
    """
    try:
        from huggingface_hub import constants, snapshot_download
    except (ImportError, ValueError) as error:  # ValueError: an HF_* variable that is not the number it must be
        raise SystemFailure(f"huggingface_hub cannot be loaded: {error}") from error
    try:
        offline = offline or constants.HF_HUB_OFFLINE
        fetch = partial(snapshot_download, repo, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED)
        with _ONE_AT_A_TIME, _quiet():
            return Path(fetch(local_files_only=True) if offline else _fetch(fetch))
    except Exception as error:  # what a library and a server can fail with has no end; all of it ends in one line
        raise _in_words(error, repo, revision) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What huggingface_hub says of every try is said once, by us; whoever asked it to say more still hears it all."""
    library = logging.getLogger("huggingface_hub")
    before = library.level
    if before not in (logging.DEBUG, logging.INFO):
        library.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        library.setLevel(before)


def _fetch(fetch: Callable[..., str]) -> str:
    patience = _Patience()
    with patience.rules():
        try:
            directory = _interruptible(fetch, patience)
        except _GaveUpError:
            with contextlib.suppress(OSError):  # as huggingface_hub does when the hub is down: a whole copy is enough
                directory = fetch(local_files_only=True)
                _log.warning("the hub does not answer (%s): the copy in the cache is used", patience.over)
                return directory
            raise
    if patience.unanswered:
        _log.warning("the hub does not answer (%s): the copy in the cache is used", patience.unanswered)
    return directory


class _GaveUpError(Exception):
    """The request failed for longer than PATIENCE, or the hub asked to wait longer than that."""


class _NoHubError(_GaveUpError):
    """The answer is not one that a hub gives."""


@dataclass
class _Tries:
    """How often one request was made since it first failed, and what came of it last."""

    since: float = field(default_factory=time.monotonic)
    count: int = 0
    reason: str = _CUT

    def age(self) -> float:
        return time.monotonic() - self.since

    def are_enough(self) -> bool:
        return self.count >= TRIES or (self.count > 1 and self.age() > PATIENCE)


class _Patience:
    """Counts per request how often and how long it has failed, and ends what huggingface_hub would go on with."""

    def __init__(self) -> None:
        self.over = ""
        self.unanswered = ""
        self._ended: type[_GaveUpError] = _GaveUpError
        self._failing: dict[tuple[str, ...], _Tries] = {}

    @contextlib.contextmanager
    def rules(self) -> Iterator[None]:
        from huggingface_hub import set_client_factory
        from huggingface_hub.utils import _http

        make = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)
        unset = [name for name in _XET if name not in os.environ]
        os.environ.update({name: _XET[name] for name in unset})
        set_client_factory(lambda: self._watched(make()))
        try:
            yield
        finally:
            set_client_factory(make)
            for name in unset:
                os.environ.pop(name, None)

    def stop(self) -> None:
        from huggingface_hub import close_session

        self.over = "interrupted"
        close_session()
        with contextlib.suppress(Exception):  # not in every version, and only where hf_xet is installed
            from huggingface_hub.utils._xet import abort_xet_session

            abort_xet_session()

    def _watched(self, client: Any) -> Any:
        client.send = partial(self._send, client.send)
        return client

    def _send(self, send: Callable[..., Any], request: Any, **options: Any) -> Any:
        if request.url.path.endswith("/api/agent-harnesses"):  # huggingface_hub asks in passing and ignores failures
            return send(request, **options)
        # A download that got further asks for another range, which counts as another request.
        key = (request.method, str(request.url), request.headers.get("range", ""))
        tries = self._failing.setdefault(key, _Tries())
        if self.over or tries.are_enough():
            self._give_up(tries.reason, _GaveUpError)
        tries.count += 1
        _limit_timeouts(request)
        try:
            response = send(request, **options)
        except Exception as error:
            self._note(key, tries, type(error).__name__)
            raise
        trouble, wait = _trouble(response)
        self._note(key, tries, trouble)
        if wait > PATIENCE - tries.age():
            self._give_up(trouble, _GaveUpError)
        if false := fault(response):
            self._give_up(false, _NoHubError)
        if not trouble and not options.get("stream"):  # the body of a stream can still be cut
            del self._failing[key]
        return response

    def _note(self, key: tuple[str, ...], tries: _Tries, trouble: str) -> None:
        tries.reason = trouble or _CUT
        if "/api/models/" in key[1]:
            self.unanswered = trouble

    def _give_up(self, reason: str, how: type[_GaveUpError]) -> None:
        if not self.over:  # the other files of the snapshot end at their next request, for the same reason
            self.over, self._ended = reason, how
        raise self._ended(self.over)


def _limit_timeouts(request: Any) -> None:
    from huggingface_hub import constants

    limit = max(TIMEOUT, constants.HF_HUB_DOWNLOAD_TIMEOUT, constants.HF_HUB_ETAG_TIMEOUT)
    given = request.extensions.get("timeout") or {}
    request.extensions["timeout"] = {k: min(given.get(k) or limit, limit) for k in ("connect", "read", "write", "pool")}


def _trouble(response: Any) -> tuple[str, float]:
    """What is wrong with an answer, "" if nothing, and how many seconds huggingface_hub would wait because of it."""
    status = response.status_code
    if status < 400:
        return "", 0.0
    reset = re.search(r"\bt\s*=\s*(\d+)", response.headers.get("ratelimit", ""))
    after = response.headers.get("retry-after") or (reset[1] if reset and status == 429 else "")
    seconds = float(after[:9]) if re.fullmatch(r"[0-9]+", after) else 0.0
    said = f"{seconds:g} s" if seconds else after[:40]  # the other form of Retry-After is a date
    retried = status in (408, 429) or status >= 500
    return f"HTTP {status}" + (f", Retry-After {said}" if said.isprintable() and said else ""), seconds * retried


def _interruptible(fetch: Callable[..., str], patience: _Patience) -> str:
    """Run `fetch` beside the main thread, so that ^C or a signal handler that raises ends it within seconds."""
    outcome: Future[str] = Future()

    def work() -> None:
        try:
            outcome.set_result(fetch())
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=work, name="weightguard-download", daemon=True)
    thread.start()
    try:
        return outcome.result()
    finally:
        if not outcome.done():
            patience.stop()
            thread.join(3)


def _in_words(error: BaseException, repo: str, revision: str | None) -> WeightguardError:
    from huggingface_hub import constants, errors

    ref = repo if revision is None else f"{repo}@{revision}"
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for link in chain:
        if isinstance(link, _NoHubError):
            return SystemFailure(f"{ref}: {link}; is {constants.ENDPOINT} a hub?")
        if isinstance(link, _GaveUpError):
            return SystemFailure(f"{ref}: the hub does not deliver: {link}; try again later")
        if isinstance(link, errors.HfHubHTTPError):
            return _refusal(link, ref, f"{constants.ENDPOINT}/{repo}")
        if type(link).__module__.startswith("httpx"):
            said = _disconnected(type(link).__name__, constants.ENDPOINT)
            return SystemFailure(f"{ref}: no such directory, and {said}")
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is None:
        part = "only in part in" if type(error).__name__ == "IncompleteSnapshotError" else "not in"
        return CheckpointError(
            f"{ref}: no such directory, and {part} the local cache, and offline; run once with network access"
        )
    if isinstance(error, OSError) and error.strerror:
        return SystemFailure(f"{ref}: the hub cache cannot be written: {error.strerror}: {error.filename}")
    said = str(error).strip().partition("\n")[0][:200]
    return SystemFailure(f"{ref}: the download failed: {said or type(error).__name__}; try again later")


def _disconnected(kind: str, endpoint: str) -> str:
    if kind == "UnsupportedProtocol":
        return f"HF_ENDPOINT={endpoint} is no address that begins with http:// or https://"
    if kind == "RemoteProtocolError":  # huggingface_hub gave up on its own, as with any file below its 10 MB steps
        return f"the hub does not deliver: {_CUT}; try again later"
    return f"the connection to {endpoint} failed ({kind}); correct the name, or try again later"


def _refusal(error: Any, ref: str, page: str) -> WeightguardError:
    status, name = error.response.status_code, type(error).__name__
    trouble, _ = _trouble(error.response)
    if name == "RevisionNotFoundError":
        return CheckpointError(f"{ref}: the repository has no such revision ({page})")
    if name == "DisabledRepoError":
        return CheckpointError(f"{ref}: disabled by the hub ({page})")
    if status in (401, 403):
        found = "gated" if name == "GatedRepoError" else "gated, private or not there"
        return CheckpointError(
            f"{ref}: {found} ({trouble}): accept the terms at {page} and log in with `hf auth login`"
        )
    file = error.response.request.url.path.partition("/resolve/")[2].partition("/")[2]
    if status in (404, 410, 451) and file and name != "RepositoryNotFoundError":
        return CheckpointError(f"{ref}: the hub lists {file[:200]!a}, but does not have it ({trouble})")
    if status in (404, 410, 451):
        return CheckpointError(f"no such model: {ref} is neither a directory nor at {page} ({trouble})")
    if status in (400, 422):
        return CheckpointError(f"{ref}: not a name that the hub takes ({trouble})")
    return SystemFailure(f"{ref}: the hub does not deliver: {trouble}; try again later")
