"""Entry point: runs a command and turns every ending into one line and a documented exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import click

from weightguard.cli.commands import cli
from weightguard.errors import WeightguardError


class _Terminated(BaseException):
    """SIGTERM, as an exception, so that stages are removed on the way out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `weightguard` with `arguments` (default: the process's); returns the exit code (see `errors`)."""
    try:
        signal.signal(signal.SIGTERM, _terminate)
        result = cli.main(args=arguments, prog_name="weightguard", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except BaseException as error:
        return _ending(error)


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Terminated


def _ending(error: BaseException) -> int:
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return _say("interrupted; nothing was published", 130)
    if isinstance(error, _Terminated):
        return _say("terminated; nothing was published", 143)
    if isinstance(error, click.ClickException):
        return _say(error.format_message(), 2)
    if isinstance(error, WeightguardError):
        return _say(str(error), error.exit_code)
    if isinstance(error, OSError):
        return _say(_os_words(error), 5)
    if isinstance(error, MemoryError):
        return _say("out of memory", 5)
    return _say(f"internal error: {type(error).__name__}; please report it with {_log(error)}", 70)


def _os_words(error: OSError) -> str:
    if isinstance(error, BrokenPipeError):
        # Whoever read stdout is gone; keep the interpreter from failing again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def _log(error: BaseException) -> str:
    with tempfile.NamedTemporaryFile("w", prefix="weightguard-", suffix=".log", delete=False) as file:
        traceback.print_exception(error, file=file)
    return file.name


def _say(message: str, code: int) -> int:
    line = " ".join(str(message).split())
    printable = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)
    with contextlib.suppress(OSError):  # where nobody can be told, the exit code still says it
        print(f"weightguard: {printable}", file=sys.stderr, flush=True)
    return code
