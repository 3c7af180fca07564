"""Masks as bits: row-major order, the first entry in the lowest bit of the first byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy


def packed(mask: numpy.ndarray) -> numpy.ndarray:
    """The bits of a bool array of any shape; uint8."""
    import numpy

    return numpy.packbits(mask.reshape(-1), bitorder="little")


def unpacked(bits: numpy.ndarray, shape: tuple[int, ...]) -> numpy.ndarray:
    """The bool array of this shape behind packed bits."""
    import math

    import numpy

    return numpy.unpackbits(bits, count=math.prod(shape), bitorder="little").view(bool).reshape(shape)


def unpacked_rows(bits: numpy.ndarray, columns: int, start: int, stop: int) -> numpy.ndarray:
    """Rows start..stop of the bool matrix of that many columns behind packed bits."""
    import numpy

    begin, end = start * columns, stop * columns
    held: numpy.ndarray = numpy.unpackbits(bits[begin // 8 : size(end)], bitorder="little").view(bool)
    return held[begin % 8 : begin % 8 + end - begin].reshape(stop - start, columns)


def size(count: int) -> int:
    """Bytes that hold `count` bits."""
    return (count + 7) // 8
