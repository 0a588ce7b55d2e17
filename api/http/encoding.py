"""Answers → JSON or msgpack, where vectors are float32 bytes."""

from typing import Any, Final

import msgspec
import numpy as np

from api.http.context import RequestContext
from api.http.problems import Reply
from core.vectors.arrays import json_floats

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"


def _numbers(value: Any) -> list[float]:
    if isinstance(value, np.ndarray):
        return json_floats(value)
    raise NotImplementedError


def _bytes(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        return value.astype("<f4", copy=False).tobytes()
    raise NotImplementedError


encode_json: Final = msgspec.json.Encoder(enc_hook=_numbers).encode
encode_msgpack: Final = msgspec.msgpack.Encoder(enc_hook=_bytes).encode


def encoded(context: RequestContext, answer: object) -> Reply:
    """The answer as the caller accepts it."""
    if context.msgpack_out:
        return Reply(200, encode_msgpack(answer), MSGPACK)
    return Reply(200, encode_json(answer), JSON)
