"""What schemathesis is told of msgpack bodies, and of the vectors in them."""

from typing import Any, Final

import msgspec
import numpy as np
import schemathesis
from hypothesis import strategies as st
from schemathesis.core.transport import Response

from core.identifiers import product_id_problem

DIMENSION: Final = 3
"""Of the model version that the document's examples name, so that its vectors fit."""
_INT_MAX: Final = 2**63 - 1


def _as_text(data: bytes) -> str:
    """Bytes as text that `_to_msgpack` turns back: schemathesis' own binary it cannot validate."""
    return data.decode("latin-1")


_numbers: Final = st.lists(
    st.floats(-10, 10, width=32), min_size=DIMENSION, max_size=DIMENSION
).filter(any)
_packed: Final = _numbers.map(lambda numbers: np.array(numbers, dtype="<f4").tobytes())
schemathesis.openapi.format("float32-le", st.one_of(_packed, _packed, st.binary()).map(_as_text))


@schemathesis.serializer("application/msgpack")
def _to_msgpack(_context: Any, value: Any) -> bytes:
    return msgspec.msgpack.encode(_with_bytes(value))


@schemathesis.deserializer("application/msgpack")
def _of_msgpack(_context: Any, response: Response) -> Any:
    return _with_text(msgspec.msgpack.decode(response.content))


def _with_text(value: Any) -> Any:
    """The same, bytes as text: what `format: float32-le` is to a validator."""
    if isinstance(value, dict):
        return {name: _with_text(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_text(item) for item in value]
    return _as_text(value) if isinstance(value, bytes) else value


def _with_bytes(value: Any, name: str = "") -> Any:
    """The same, the texts in the place of vectors as bytes."""
    if isinstance(value, dict):
        return {name: _with_bytes(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_bytes(item, name) for item in value]
    if isinstance(value, str) and name in {"vector", "vectors"}:
        return value.encode("latin-1", "replace")
    if isinstance(value, str) and name in {"positive", "negative"} and product_id_problem(value):
        return value.encode("latin-1", "replace")
    if isinstance(value, int) and not -_INT_MAX <= value <= _INT_MAX:
        return float(value)  # msgpack has no larger whole numbers
    return value
