"""A batch of embeddings: decoded entry by entry, so that each bad one is named."""

from dataclasses import dataclass
from typing import Final

from api.admission.executor import Steps
from api.wire.decoding import body_decoder
from api.wire.embeddings import BatchBody, BatchEntry
from api.wire.vectors import DECODED_AT_ONCE, floats
from core.errors import FieldError, Invalid
from core.usecases.embeddings import Row
from core.vectors.arrays import as_vector

_NO_ROW: Final[Row] = ("", as_vector([]))
"""In the place of an entry that cannot be one."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What could be decoded of a batch."""

    rows: list[Row]
    """One an entry, in order."""
    errors: dict[int, tuple[FieldError, ...]]
    """By position, of the entries that are no embeddings at all."""


def decode_entries(body: BatchBody, *, msgpack: bool) -> Steps[Batch]:
    """The embeddings of a batch.

    Raises:
        Unreadable: one of them cannot be read.
    """
    decoder = body_decoder(BatchEntry)
    rows: list[Row] = []
    errors: dict[int, tuple[FieldError, ...]] = {}
    for position, raw in enumerate(body.embeddings):
        if position and position % DECODED_AT_ONCE == 0:
            yield 0
        at = f"embeddings[{position}]"
        try:
            entry = decoder.decode(raw, msgpack=msgpack, at=at)
            vector = floats(entry.vector, f"{at}.vector", msgpack=msgpack)
            rows.append((entry.product_id, vector))
        except Invalid as error:
            rows.append(_NO_ROW)
            errors[position] = error.errors
    return Batch(rows, errors)
