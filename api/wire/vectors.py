"""Vectors as they come over the wire → float32 arrays."""

from collections.abc import Sequence
from typing import Final

from msgspec import Raw

from api.wire.decoding import LARGE_BYTES, BodyDecoder
from api.wire.fields import Numbers
from core.errors import FieldError, Invalid
from core.limits import DIMENSION_MAX
from core.models import Metric
from core.vectors.arrays import Floats, as_vector, check_vector

DECODED_AT_ONCE: Final = 16
"""Vectors to a step: 65,000 numbers at the most, which take a millisecond or two."""

Wire = bytes | list[float] | Raw


_vector: Final[BodyDecoder[bytes | list[float]]] = BodyDecoder(Numbers, bytes | Numbers)  # type: ignore[arg-type] # a union is no type to mypy


def floats(wire: Wire, at: str, *, msgpack: bool) -> Floats:
    """float32 (d,), not checked beyond being numbers.

    Args:
        wire: float32 little-endian bytes, numbers, or either of them still encoded.
        at: where in the body it is.
        msgpack: what it is encoded in, if it is and not in JSON.

    Raises:
        Unreadable: it cannot be read.
        Invalid: it is no list of numbers, or far too long.
    """
    value: bytes | list[float]
    if isinstance(wire, Raw):
        encoded = memoryview(wire)
        if not msgpack and len(encoded) > LARGE_BYTES:  # making the numbers would take time
            count = bytes(encoded).count(b",") + 1
            if count > DIMENSION_MAX:
                message = f"has {count} numbers, the most is {DIMENSION_MAX}"
                raise Invalid.of(FieldError(at, message))
        value = _vector.decode(wire, msgpack=msgpack, at=at)
    else:
        value = wire
    if isinstance(value, bytes) and len(value) % 4:
        message = f"has {len(value)} bytes, which is no whole number of float32"
        raise Invalid.of(FieldError(at, message))
    return as_vector(value)


def check_all(
    vectors: Sequence[Floats], names: Sequence[str], metric: Metric, dimension: int | None
) -> None:
    """Checks the vectors of a search against the model version, as far as it is known.

    Raises:
        Invalid: naming each vector that is not valid.
    """
    problems = [check_vector(v, metric, dimension) for v in vectors]
    found = [
        FieldError(name, problem) for name, problem in zip(names, problems, strict=True) if problem
    ]
    if found:
        raise Invalid(f"{found[0].field} {found[0].message}", tuple(found))
