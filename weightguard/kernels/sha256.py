"""sha256 of several messages at once: by the compiled kernel where the machine has SHA instructions, else by hashlib.

hashlib hashes one message after the other, and an edited tensor belongs to four: a file and a tensor, before and after.
"""

from __future__ import annotations

import ctypes
import hashlib
from functools import cache
from typing import Protocol, Self

import numpy

from weightguard.kernels import native

Data = bytes | bytearray | memoryview
_START = bytes.fromhex("67e6096a85ae67bb72f36e3c3af54fa57f520e518c68059babd9831f19cde05b")  # the words little-endian


class Hash(Protocol):
    """What hashlib's objects can do, as far as it is used."""

    def copy(self) -> Self: ...

    def update(self, data: Data, /) -> None: ...

    def hexdigest(self) -> str: ...


class _State(ctypes.Structure):
    """WgSha256 of cpp_ext/cpu/abi.h."""

    _fields_ = (("state", ctypes.c_ubyte * 32), ("length", ctypes.c_uint64), ("rest", ctypes.c_ubyte * 64))


class _Job(ctypes.Structure):
    """WgHashed of cpp_ext/cpu/abi.h."""

    _fields_ = (("hash", ctypes.c_void_p), ("data", ctypes.c_void_p), ("size", ctypes.c_int64))


class _Native:
    """A running sha256 of the compiled kernel."""

    def __init__(self, state: bytes = _START + bytes(72)) -> None:
        self.state = _State.from_buffer_copy(state)

    def copy(self) -> Self:
        return type(self)(bytes(self.state))

    def update(self, data: Data, /) -> None:
        update([(self, data)])

    def hexdigest(self) -> str:
        digest = ctypes.create_string_buffer(32)
        _kernel().wg_sha256_digest(ctypes.byref(self.state), digest)
        return digest.raw.hex()


def sha256() -> Hash:
    """A new running hash."""
    return _Native() if native.compiled() is not None and _has_instructions() else hashlib.sha256()


def update(pairs: list[tuple[Hash, Data]]) -> None:
    """Feed each hash its data, side by side; no hash may be in the list twice."""
    fast = [(hash, numpy.frombuffer(data, numpy.uint8)) for hash, data in pairs if isinstance(hash, _Native)]
    for hash, data in pairs:
        if not isinstance(hash, _Native):
            hash.update(data)
    if fast:
        jobs = (_Job * len(fast))(*(_Job(ctypes.addressof(h.state), d.ctypes.data, d.size) for h, d in fast))
        _kernel().wg_sha256_update(jobs, len(fast))


@cache
def _has_instructions() -> bool:
    return bool(_kernel().wg_sha256_here())


@cache
def _kernel() -> ctypes.CDLL:
    loaded = native.compiled()
    assert loaded is not None
    loaded.wg_sha256_update.restype = loaded.wg_sha256_digest.restype = None
    return loaded
