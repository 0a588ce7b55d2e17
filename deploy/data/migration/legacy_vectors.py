"""Vectors of older data: lists of numbers, or bytes, whose length determines the number type."""

import re
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from core.errors import Invalid

_NUMBER_TYPES: Final = {"<f4": 4, "<f8": 8, "<f2": 2}
"""Number types, and the bytes that one number takes."""
_BEGINS: Final = re.compile(rb'\s*\{\s*"(?:B"\s*:\s*\{|type"|data"|0")')
_TYPED: Final = re.compile(rb"\s*\{\s*\"B\"\s*:\s*(\{.*\})\s*\}\s*", re.DOTALL)
_BUFFER: Final = {"type", "data"}


class Binary(msgspec.Struct, frozen=True):
    """A vector that is a DynamoDB Binary."""

    data: bytes


def javascript_binary(text: bytes) -> Binary | None:
    """A Binary as the JavaScript SDKs print it, in DynamoDB's types or plain.

    A `Uint8Array` is printed as an object of numbers by position, and a `Buffer` as an object with
    `type` and `data`. None if the JSON value is neither.
    """
    if not _BEGINS.match(text):
        return None
    typed = _TYPED.fullmatch(text)
    try:
        value = msgspec.json.decode(typed[1] if typed else text)
        if not isinstance(value, dict):
            return None
        if value.keys() == _BUFFER and value["type"] == "Buffer":
            # `bytes` of a number would be as many zeros.
            return Binary(bytes(msgspec.convert(value["data"], list[int])))
        if value and all(name == str(at) for at, name in enumerate(value)):
            return Binary(bytes(value.values()))
    except (msgspec.MsgspecError, UnicodeDecodeError, TypeError, ValueError):
        return None
    return None


def from_bytes(data: bytes, dimension: int | None, *, own: bool) -> NDArray[np.float32]:
    """float32 (d,), from bytes of float32, float64 or float16, little-endian.

    Args:
        data: The bytes.
        dimension: The number of values, if the row has it.
        own: Whether K9 wrote the row, whose values are then always float32.

    Raises:
        Invalid: the bytes fit none of these types, or two of them.
    """
    numbers = np.frombuffer(data, dtype=_number_type(len(data), dimension, own=own))
    with np.errstate(over="ignore", invalid="ignore"):  # validation rejects infinite values
        return numbers.astype(np.float32)


def _number_type(size: int, dimension: int | None, *, own: bool) -> str:
    if dimension is not None and not own:
        for number_type, width in _NUMBER_TYPES.items():
            if size == dimension * width:
                return number_type
        raise Invalid(f"embedding_vector has {size} bytes, vector_dimension is {dimension}")
    if size % 4:
        raise Invalid("embedding_vector is binary, and not a whole number of float32 values")
    if size % 8 == 0 and not own:
        raise Invalid(
            f"embedding_vector has {size} bytes: {size // 4} numbers of float32, or {size // 8} of "
            "float64; add vector_dimension to say which"
        )
    return "<f4"
