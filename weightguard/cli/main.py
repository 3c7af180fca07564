"""Entry point: runs a command and turns every ending into one line and a documented exit code."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import click

from weightguard.cli.commands_attack import cli  # which adds to the commands
from weightguard.errors import SystemFailure, WeightguardError, lacks_memory

MAX_LINE = 4000
_received: list[int] = []  # signals that came while this run was at work


class _Terminated(BaseException):
    """SIGTERM, as an exception, so that stages are removed on the way out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `weightguard` with `arguments` (default: the process's); returns the exit code (see `errors`)."""
    _received.clear()
    try:
        with contextlib.suppress(ValueError):  # only the main thread may set a handler
            signal.signal(signal.SIGTERM, _terminate)
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a shell's background job ignores ^C
                signal.signal(signal.SIGINT, _interrupt)
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # not our user's business
        _prepare_streams()
        _check_working_directory()
        # Not click's own main: it ends a broken pipe with exit code 1, which here means a failed gate.
        with cli.make_context("weightguard", list(sys.argv[1:] if arguments is None else arguments)) as context:
            cli.invoke(context)
        sys.stdout.flush()
        return 0
    except BaseException as error:
        return _ending(error)


def process() -> NoReturn:
    """`main` as a process of its own, whose end is silent: what is to be said was said.

    At the end of the interpreter torch imports more modules. Where memory is short that fails, with a traceback. Threads that
    wait for each other sleep: spinning, which torch's library does, takes twice the time beside other jobs.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    code = main()
    sys.unraisablehook = lambda _: None
    sys.exit(code)


def _prepare_streams() -> None:
    """Closed standard streams lead to /dev/null, or the next file opened would take their place and what is printed.

    Error: SystemFailure where that is standard output: a result that nobody can be told is none.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        raise SystemFailure("standard output is closed; send it to /dev/null where nobody is to read it")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _check_working_directory() -> None:
    """Libraries that are loaded later fail without one, in words of their own. Error: SystemFailure."""
    try:
        os.getcwd()
    except OSError as error:
        raise SystemFailure(
            f"the working directory is gone ({error.strerror}); start again in one that is there"
        ) from error


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _received.append(number)
    raise _Terminated


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    _received.append(number)
    raise KeyboardInterrupt


def _ending(error: BaseException) -> int:
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    # A library may swallow the exception a signal became (a lazy import says "could not import"): the signal counts.
    if isinstance(error, _Terminated) or signal.SIGTERM in _received:
        return _say("terminated; no unfinished output is left", 143)
    if isinstance(error, (click.Abort, KeyboardInterrupt)) or signal.SIGINT in _received:
        return _say("interrupted; no unfinished output is left", 130)
    if isinstance(error, click.ClickException):
        return _usage(error)
    if isinstance(error, WeightguardError):
        return _say(str(error), error.exit_code)
    if isinstance(error, OSError):
        return _say(_os_words(error), 5)
    if lacks_memory(error):
        return _say("out of memory", 5)
    if _of_model_class(error):
        words = f"transformers' own code of this model fails on it: {str(error)[:300]}"
        return _say(
            f"{words}; if another --dtype fails too but stock transformers runs it, please report {_log(error)}", 6
        )
    return _say(f"internal error: {type(error).__name__}; please report it with {_log(error)}", 70)


def _usage(error: click.ClickException) -> int:
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # click 8.2 and newer
        error.show()
        return 2
    return _say(error.format_message(), 2)


def _os_words(error: OSError) -> str:
    if not _of_stdout(error):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    # Keep the interpreter from failing again when it flushes.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if isinstance(error, BrokenPipeError):  # whoever read it is gone
        return "standard output was closed before all of the result was shown"
    return f"standard output: {error.strerror}"


def _of_stdout(error: OSError) -> bool:
    """Whether it came of showing the result: such an error names no file, and click or `main` were at work."""
    places = [frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, BrokenPipeError) or (not error.filename and places[-1:] in (["click.utils"], [__name__]))


def _of_model_class(error: BaseException) -> bool:
    """Whether a stock model came upon it while it ran, as one does whose sizes do not suit its own arithmetic."""
    places = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((p for p in reversed(places) if not p.startswith("torch")), "").startswith("transformers.models.")


def _log(error: BaseException) -> str:
    try:
        with tempfile.NamedTemporaryFile("w", prefix="weightguard-", suffix=".log", delete=False) as file:
            traceback.print_exception(error, file=file)
    except OSError as failure:
        return f"its traceback; no log could be written: {failure.strerror}"
    return file.name


def _say(message: str, code: int) -> int:
    line = " ".join(str(message).split())
    printable = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line[:MAX_LINE])
    with contextlib.suppress(OSError):  # where nobody can be told, the exit code still says it
        print(f"weightguard: {printable}", file=sys.stderr, flush=True)
    return code
