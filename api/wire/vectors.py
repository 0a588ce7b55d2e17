"""Vectors as they come over the wire → float32 arrays."""

from collections.abc import Sequence
from typing import Final

from msgspec import Raw

from api.admission.executor import Steps
from api.wire.decoding import Shape
from api.wire.schemas import Numbers
from core.errors import FieldError, Invalid
from core.models import Metric
from core.settings import Limits
from core.vectors.arrays import Floats, as_vector, check_vector

LARGE_BYTES: Final = 256 * 1024
"""Bodies over it are decoded in a thread, vector by vector, to let the event loop have its turn."""

DECODED_AT_ONCE: Final = 16
"""Vectors to a step: 65,000 numbers at the most, which take a millisecond or two."""
_COUNTED_BYTES: Final = 4 << 20

Wire = bytes | list[float] | Raw


_packed: Final[Shape[bytes | list[float]]] = Shape(Numbers, bytes | Numbers)  # type: ignore[arg-type] # a union is no type to mypy


def count_parts(data: bytes, most: int) -> Steps[None]:
    """Refuses a JSON body of far too many parts before any of them is made.

    msgspec makes all entries of a list before it counts them, at 70 bytes each. Commas inside of
    strings are counted too: `most` leaves room for them.

    Raises:
        Invalid: there are more parts than any good body has.
    """
    parts = 1
    for start in range(0, len(data), _COUNTED_BYTES):
        if start:
            yield 0
        parts += data.count(b",", start, start + _COUNTED_BYTES)
    if parts > most:
        message = f"has {parts} parts, the most is {most}"
        raise Invalid(f"the body {message}", (FieldError("body", message),))


def floats(wire: Wire, limits: Limits, at: str, *, msgpack: bool) -> Floats:
    """float32 (d,), not checked beyond being numbers.

    Args:
        wire: float32 little-endian bytes, numbers, or either of them still encoded.
        limits: how long a vector may be.
        at: where in the body it is.
        msgpack: what it is encoded in, if it is and not in JSON.

    Raises:
        Unreadable: it cannot be read.
        Invalid: it is no list of numbers, or far too long.
    """
    value: bytes | list[float]
    if isinstance(wire, Raw):
        encoded = memoryview(wire)
        if not msgpack and len(encoded) > LARGE_BYTES:
            _count(bytes(encoded), limits, at)
        value = _packed.decode(wire, msgpack=msgpack, at=at)
    else:
        value = wire
    if isinstance(value, bytes) and len(value) % 4:
        message = f"has {len(value)} bytes, which is no whole number of float32"
        raise Invalid(f"{at} {message}", (FieldError(at, message),))
    return as_vector(value)


def _count(encoded: bytes, limits: Limits, at: str) -> None:
    """Refuses a vector that is far too long before its numbers are made, which takes time."""
    count = encoded.count(b",") + 1
    if count > limits.dimension_max:
        message = f"has {count} numbers, the most is {limits.dimension_max}"
        raise Invalid(f"{at} {message}", (FieldError(at, message),))


def check_all(
    vectors: Sequence[Floats],
    names: Sequence[str],
    metric: Metric,
    dimension: int | None,
    limits: Limits,
) -> None:
    """Checks the vectors of a search against the model version, as far as it is known.

    Raises:
        Invalid: naming each vector that does not hold.
    """
    problems = [check_vector(v, metric, dimension, limits.dimension_max) for v in vectors]
    found = [
        FieldError(name, problem) for name, problem in zip(names, problems, strict=True) if problem
    ]
    if found:
        raise Invalid(f"{found[0].field} {found[0].message}", tuple(found))
