"""Strict JSON for files that come from strangers: what other readers guess about is refused, in one line.

Python's own parser accepts a byte order mark, other encodings, the same key twice (the last one wins), NaN, numbers
that become infinite and lone surrogates, and it recurses until the interpreter stops it. Two programs that read such a
file differently disagree about what is in a checkpoint, so none of it is taken here.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from itertools import accumulate
from pathlib import Path
from typing import NoReturn

from weightguard.errors import CheckpointError, SystemFailure

MAX_BYTES = 100_000_000
MAX_DEPTH = 64
MAX_DIGITS = 4300
MAX_CONTAINERS = 4_000_000  # a safetensors header of a million tensors has 3 000 001

# A string, or what is left of the file after a quote that is never closed. A match always succeeds once a quote is
# found and never gives a character back, so the strings of any file are removed in one pass, neighbours in one match.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)'
_STRINGS = re.compile(_STRING + rb'(?:[^][{}"]*+' + _STRING + rb")*+", re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NOT_JSON = {
    b"\xef\xbb\xbf": "begins with a byte order mark; save it as plain UTF-8",
    b"version https://git-lfs": "is a git-lfs pointer, not the file itself; run `git lfs pull`",
    b"<": "is an HTML or XML page, not JSON; download the file again",
}


def parse(
    data: bytes, what: str, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH, max_objects: int = MAX_CONTAINERS
) -> object:
    """The value in `data`, of at most `max_objects` objects. Errors: CheckpointError, one line that begins with `what`."""
    if len(data) > max_bytes:
        raise CheckpointError(f"{what}: {len(data)} bytes, more than the {max_bytes} that are read")
    hint = next((words for start, words in _NOT_JSON.items() if data.startswith(start)), None)
    if hint or not data.strip(b" \t\r\n\0"):
        raise CheckpointError(f"{what}: {hint or 'is empty, JSON was expected'}")
    try:
        _check_nesting(data, max_depth, max_objects)
        return _decode(str(data, "utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{what}: line {error.lineno} column {error.colno}: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{what}: byte {error.start}: not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what}: {error}") from None


def read(path: Path, what: str | None = None, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> object:
    """Parse a regular file; a FIFO, a device or a directory is refused at once, without waiting for a writer."""
    what = what or path.name
    return parse(raw(path, what, max_bytes=max_bytes), what, max_bytes=max_bytes, max_depth=max_depth)


def raw(path: Path, what: str, *, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file. Errors: CheckpointError, SystemFailure, one line that begins with `what`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise _cannot_open(what, path, error) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{what}: not a regular file ({stat.filemode(status.st_mode)})")
        if status.st_size > max_bytes:
            raise CheckpointError(f"{what}: {status.st_size} bytes, more than the {max_bytes} that are read")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(status.st_size + 1)  # room is made for all that is asked for, not for what comes
    except OSError as error:
        raise SystemFailure(f"{what}: cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)


def dump(obj: object) -> bytes:
    """The one way our own files are written: insertion order, two spaces, UTF-8, a newline at the end, never NaN."""
    return (json.dumps(obj, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode("utf-8")


def _decode(text: str) -> object:
    value = json.loads(
        text,
        object_pairs_hook=_unique,
        parse_constant=_refuse_constant,
        parse_float=_finite,
        parse_int=_integer,
    )
    if "\\ud" in text or "\\uD" in text:
        _refuse_lone_surrogates(value)
    return value


def _check_nesting(data: bytes, max_depth: int, max_objects: int) -> None:
    """Bound depth and number of brackets before the parser, which recurses and builds a value for each, sees them."""
    if data.count(b"[") + data.count(b"{") <= max_depth:
        return
    brackets = _STRINGS.sub(b"", data).translate(None, _NOT_BRACKETS)
    if len(brackets) > 2 * MAX_CONTAINERS:
        raise ValueError(f"more than {MAX_CONTAINERS} lists and objects")
    if brackets.count(b"{") > max_objects:
        raise ValueError(f"more than {max_objects} objects")
    for depth in accumulate(map(_STEP.__getitem__, brackets)):
        if depth > max_depth:
            raise ValueError(f"nested deeper than {max_depth} levels")
        if depth <= 0:  # the value ends here, and so does the parser
            return


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {_shown(twice)} appears twice in one object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {_shown(digits)} is too large for a float")
    return value


def _integer(digits: str) -> int | float:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits, more than {MAX_DIGITS}")
    # Readers disagree about -0; as the float that others take it for, it is no size and no offset.
    return -0.0 if digits == "-0" else int(digits)


def _refuse_lone_surrogates(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("a string holds half of a surrogate pair (\\ud800 to \\udfff), which is not text") from None


def _shown(text: str) -> str:
    """At most 60 characters, escaped: a key must not break the line or the terminal."""
    return json.dumps(text if len(text) <= 60 else text[:60] + "...")


def _cannot_open(what: str, path: Path, error: OSError) -> CheckpointError | SystemFailure:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return CheckpointError(f"{what}: {'a link to nothing' if path.is_symlink() else 'missing'}")
    if os.path.lexists(path) and not path.is_file():
        return CheckpointError(f"{what}: not a regular file")
    return SystemFailure(f"{what}: cannot be opened: {error.strerror}")
