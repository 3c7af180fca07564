"""A program that came with a model, such as a chat template, runs in a child that may take neither long nor much memory."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from weightguard.errors import DataError

SECONDS = 20  # of CPU, and what a row may take on top
SECONDS_A_ROW = 0.02
MEMORY = 1 << 30
ANSWER = 1 << 30


def bounded(work: Callable[[], list[Any]], items: int, what: str) -> list[Any]:
    """What `work` gives, JSON values, from a forked child. Errors: its DataError; DataError for too long or too large.

    Nothing of the child is left but its answer, so that a program can also change nothing here. Where there is no fork,
    the work is done in this process.
    """
    if not hasattr(os, "fork"):
        return work()
    seconds = int(SECONDS + SECONDS_A_ROW * items)
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # other threads rest; the child runs no code that waits for them
        child = os.fork()
    if child == 0:
        _answer(work, writing, seconds)
    os.close(writing)
    try:
        answer = _read(reading, time.monotonic() + 10 * seconds)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if answer is None:
        raise DataError(f"{what} takes more than {seconds} s of CPU or {MEMORY >> 20} MB of memory; it was stopped")
    if "refused" in answer:
        raise DataError(answer["refused"])
    return answer["made"]


def _answer(work: Callable[[], list[Any]], writing: int, seconds: int) -> NoReturn:
    """The child: its answer into the pipe, and no way back into what it was forked from."""
    try:
        limits = {resource.RLIMIT_CPU: seconds, resource.RLIMIT_DATA: _data_size() + MEMORY}
        for kind, most in {**limits, resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}.items():
            _lower(kind, most)
        answer: dict[str, Any]
        try:
            answer = {"made": work()}
        except DataError as error:
            answer = {"refused": str(error)}
        with open(writing, "wb") as pipe:
            pipe.write(json.dumps(answer).encode())
    finally:
        os._exit(0)


def _lower(kind: int, most: int) -> None:
    """A limit of this process, or the one it has where that is lower."""
    allowed = resource.getrlimit(kind)[1]
    value = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
    resource.setrlimit(kind, (value, allowed))


def _data_size() -> int:
    """Bytes of private memory of this process."""
    return int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) << 10


def _read(reading: int, until: float) -> dict[str, Any] | None:
    """The whole answer; None where there is none by then, or too much of it."""
    found = bytearray()
    while len(found) < ANSWER and select.select([reading], [], [], max(0.0, until - time.monotonic()))[0]:
        part = os.read(reading, 1 << 20)
        if not part:
            return json.loads(found) if found else None
        found += part
    return None
