"""Several sha256 side by side are those of hashlib, one after the other, however the messages are cut."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

import pytest

from weightguard.kernels import native, sha256

SIZES = (0, 1, 7, 55, 56, 63, 64, 65, 119, 120, 127, 128, 129, 4095, 4096, 10_007)


@pytest.fixture(params=["0", ""], ids=["hashlib", "the best there is"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("WEIGHTGUARD_NATIVE", request.param)
    yield request.param


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("size", SIZES)
def test_one_message(size: int, implementation: str) -> None:
    data = random.Random(size).randbytes(size)
    hash = sha256.sha256()
    hash.update(data)
    assert hash.hexdigest() == digest(data) == hash.hexdigest()  # asking does not end the message


def test_messages_side_by_side(implementation: str) -> None:
    """One to nine messages of different lengths in pieces of all sizes; more than are worked on at once."""
    draw = random.Random(1)
    for number in range(1, 10):
        messages = [[draw.randbytes(draw.choice(SIZES)) for _ in range(5)] for _ in range(number)]
        hashes = [sha256.sha256() for _ in messages]
        for pieces in zip(*messages, strict=True):
            sha256.update([*zip(hashes, pieces, strict=True)])
        assert [h.hexdigest() for h in hashes] == [digest(b"".join(message)) for message in messages]


def test_one_place_in_several_messages(implementation: str) -> None:
    """The same bytes belong to a file and to a tensor, at different distances from the start of a block."""
    data = random.Random(2).randbytes(10_000)
    file, tensor = sha256.sha256(), sha256.sha256()
    file.update(b"header")
    sha256.update([(file, memoryview(data)), (tensor, bytearray(data))])
    assert (file.hexdigest(), tensor.hexdigest()) == (digest(b"header" + data), digest(data))


def test_a_copy_goes_its_own_way(implementation: str) -> None:
    first = sha256.sha256()
    first.update(b"both" * 100)
    second = first.copy()
    sha256.update([(first, b"a"), (second, b"b")])
    assert (first.hexdigest(), second.hexdigest()) == (digest(b"both" * 100 + b"a"), digest(b"both" * 100 + b"b"))


def test_nothing_to_hash(implementation: str) -> None:
    sha256.update([])
    assert sha256.sha256().hexdigest() == digest(b"")


def test_a_machine_without_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sha256, "_has_instructions", lambda: False)
    assert type(sha256.sha256()) is type(hashlib.sha256())


def test_the_kernel_is_used_where_the_machine_has_it() -> None:
    if native.compiled() is None or "sha_ni" not in open("/proc/cpuinfo").read():  # noqa: SIM115
        pytest.skip("no compiled kernels, or a machine without SHA instructions")
    assert type(sha256.sha256()) is not type(hashlib.sha256())
