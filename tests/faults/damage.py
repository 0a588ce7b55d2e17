"""Damage to files: what a disk, a network or a half-written upload leaves."""

from collections.abc import Callable
from typing import Final


def truncated(data: bytes) -> bytes:
    """The first half."""
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    """With one bit in the middle wrong."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGE: Final[dict[str, Callable[[bytes], bytes]]] = {
    "truncated": truncated,
    "a flipped bit": flipped,
}
