"""A function of this package in a process of its own: nothing leaks from one run into the next, and what dies dies alone.

The parent sends one JSON object to the child's stdin; the child answers with JSON lines: progress, then a result or an
error, which is raised again here. Whatever else the child prints goes to its stderr, and is told where it fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import IO, Any

from weightguard import errors
from weightguard.errors import SystemFailure, WeightguardError

Progress = Callable[[str, int, int], None]
_GRACE = 5.0  # seconds that a child has to end


def apart(target: str, arguments: Mapping[str, Any], progress: Progress) -> Any:
    """`module:function`(**arguments, progress=...) in a fresh interpreter; arguments and result are JSON values.

    Errors: those of the function; SystemFailure when the process was killed (for example for its memory).
    """
    # -P: a module of the working directory must not stand in for one that the child imports.
    command = [sys.executable, "-P", "-m", "weightguard.api.apart"]
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said)
        try:
            answer = _conversation(child, {"target": target, "arguments": dict(arguments)}, progress)
            child.wait()
        finally:
            _end(child)
        if answer is not None:
            return answer[0]
        said.seek(0)
        raise _failure(child.returncode, said.read().decode(errors="replace"))


def _conversation(child: subprocess.Popen, asked: Mapping[str, Any], progress: Progress) -> tuple[Any] | None:
    """The result as a tuple of one, or None where the child ended without any."""
    assert child.stdin is not None and child.stdout is not None
    try:
        child.stdin.write(json.dumps(asked).encode())
        child.stdin.close()
    except BrokenPipeError:
        return None
    for line in child.stdout:
        said = json.loads(line)
        if said[0] == "progress":
            progress(*said[1:])
        elif said[0] == "error":
            raise getattr(errors, said[1])(said[2])
        else:
            return (said[1],)
    return None


def _end(child: subprocess.Popen) -> None:
    for stop in (child.terminate, child.kill):
        if child.poll() is None:
            stop()
            try:
                child.wait(_GRACE)
            except subprocess.TimeoutExpired:
                continue
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            stream.close()


def _failure(code: int, said: str) -> Exception:
    if code < 0:
        return SystemFailure(f"a process was killed by signal {-code}, perhaps because memory ran out; run it again")
    return RuntimeError(f"a process ended with {code} and no result:\n{said}")


def main() -> None:
    """The child."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    asked = json.load(sys.stdin)
    module, _, name = asked["target"].partition(":")

    def progress(stage: str, done: int, total: int) -> None:
        _say(answers, "progress", stage, done, total)

    try:
        _say(answers, "result", getattr(import_module(module), name)(**asked["arguments"], progress=progress))
    except WeightguardError as error:
        _say(answers, "error", type(error).__name__, str(error))


def _say(answers: IO[str], *said: Any) -> None:
    answers.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main()
