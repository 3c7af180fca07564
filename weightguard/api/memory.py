"""--max-memory: what a run will hold is known before it begins; what does not fit is refused with what it would take."""

from __future__ import annotations

import contextlib
import ctypes
import re
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightguard.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from weightguard.api.collect import Running
    from weightguard.api.subject import Subject
    from weightguard.checkpoint import Linear, TensorInfo
    from weightguard.statistics.walk import Walk

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?) *([KMGT]?)(i?)B?", re.IGNORECASE)
_M_MMAP_THRESHOLD = -3  # of malloc.h
_REST = 32 << 20  # what a repair holds beside tensors
_ALREADY = "that Python and its libraries hold already"
_TILES = 16 << 20  # and of what is worked on tile by tile


def as_bytes(text: str | int | None) -> int | None:
    """4GB, 512MiB or a number of bytes. Error: UsageError."""
    if text is None:
        return None
    found = _SIZE.fullmatch(str(text).strip())
    size = found and int(float(found[1]) * (_BINARY if found[3] else _UNITS)[found[2].upper()])
    if not size:
        raise UsageError(f"--max-memory {text}: not a size such as 4GB or 512MB")
    return size


def fit_walk(walk: Walk, running: Running) -> None:
    """Let the hidden states of a walk wait on disk where they do not fit beside a layer. Error: UsageError."""
    from weightguard.statistics.room import bytes_at_work, bytes_waiting

    if running.max_memory is None:
        return
    layer, waiting = bytes_at_work(walk), bytes_waiting(walk)
    needed = _check("calibration", {_ALREADY: held(), "for one layer at work": layer}, running)
    if needed + waiting > running.max_memory:
        walk.spill()


def fit_side_by_side(walk: Walk, linears: Mapping[str, Linear], running: Running) -> None:
    """Refuse three such walks, and solves between them, that do not fit; all that waits is on disk. Error: UsageError."""
    from weightguard.statistics.room import bytes_at_work, bytes_before, bytes_solving

    if any(linear.expert is not None for linear in linears.values()):
        raise UsageError(
            "--max-memory: what is sent to routed experts is held for all rows at once; give --scope without them"
        )
    layers = bytes_at_work(walk, 3) + bytes_solving(walk.checkpoint, linears)
    piece = max(bytes_before(walk), layers)
    parts = {_ALREADY: held(), "for a layer of three models at work and a solve": piece}
    _check("refit with one layer of each model in memory", parts, running)


def check_repair(method: Any, subject: Subject, strength: Any, running: Running) -> None:
    """Refuse a repair that would hold more, before anything long starts. Error: UsageError."""
    if running.max_memory is None:
        return
    give_back_at_once()
    what = _whole(method, strength)
    if what:
        raise UsageError(
            f"--max-memory: {what} holds a whole model, or all of its activations or edits; it is kept by repairs with a "
            f"given strength by antidote, magnitude, random, scale and safe-lora, and by refit --judge none without --rank"
        )
    pieces = ((_at_once(method, linear, subject.model.info(name)), name) for name, linear in subject.named.items())
    piece, name = max(pieces, key=lambda each: each[0], default=(0, "no tensor"))
    parts = {_ALREADY: held(), "for files and plans": _REST, f"for {name} or as much of it as is edited at once": piece}
    _check(f"--method {method.NAME}", parts, running)


def _whole(method: Any, strength: Any) -> str:
    """What of a repair has no bound below the whole model, in words."""
    if not (hasattr(method, "BLOCKS") or hasattr(method, "HOLDS")):
        return f"--method {method.NAME}"
    return "--strength auto" if strength == "auto" else getattr(method, "unbounded", "")


def _at_once(method: Any, linear: Linear, info: TensorInfo) -> int:
    """Bytes held for a tensor: two of it and what is beside them, or the same of a block of its rows."""
    from weightguard.weights import BLOCK, WHOLE

    if not hasattr(method, "BLOCKS"):
        return info.numel * method.HOLDS
    piece = BLOCK if getattr(method, "group", "row") == "row" else WHOLE
    if linear.transposed or info.nbytes <= piece:
        return _TILES + 5 * info.nbytes // 2
    return _TILES + 5 * max(BLOCK, info.nbytes // info.shape[0]) // 2


def held() -> int:
    """Bytes of anonymous memory that this process holds now."""
    try:
        return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) << 10
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def give_back_at_once() -> None:
    """Tell glibc to return what is freed to the system: left alone it keeps tensors' memory and loses it in pieces, even
    while a model without weights is built, whose parameters are there for a moment each."""
    with contextlib.suppress(OSError, AttributeError):  # another C library has no such call, and no such habit
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 18)


def _check(what: str, parts: Mapping[str, int], running: Running) -> int:
    """Bytes of all parts together. Error: UsageError where they are more than may be, which says what takes how much."""
    assert running.max_memory is not None
    needed, said = sum(parts.values()), ", ".join(f"{shown(size)} {words}" for words, size in parts.items())
    if needed > running.max_memory:
        raise UsageError(
            f"--max-memory {shown(running.max_memory)}: {what} takes about {shown(needed)} ({said}); give at least that much"
        )
    return needed


def shown(size: int) -> str:
    """Bytes in words, rounded up, so that what is asked for is enough."""
    for unit, digits in (("GB", 9), ("MB", 6)):
        if size >= 10**digits:
            return f"{-(-size // 10 ** (digits - 1)) / 10:g} {unit}"
    return f"{size} bytes"
