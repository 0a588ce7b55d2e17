"""A batch of embeddings: read entry by entry, so that each bad one is named."""

from dataclasses import dataclass
from typing import Final

from api.admission.executor import Steps, finished
from api.http.context import Call
from api.http.problems import invalid
from api.wire.decoding import Shape
from api.wire.schemas import BatchBody, BatchEntry
from api.wire.vectors import DECODED_AT_ONCE, LARGE_BYTES, count_parts, floats
from core.errors import FieldError, Invalid
from core.models import Metric
from core.repositories.idempotency import Claim
from core.results import StoredBatch
from core.settings import Limits
from core.usecases.embeddings import Row
from core.vectors.arrays import as_vector

_batch: Final = Shape(BatchBody)
_entry: Final = Shape(BatchEntry)

_NO_ROW: Final[Row] = ("", as_vector([]))
"""In the place of an entry that cannot be one."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What could be read of a batch."""

    rows: list[Row]
    """One an entry, in order."""
    errors: dict[int, tuple[FieldError, ...]]
    """Of the entries that are no embeddings at all, by their place."""


async def read_batch(call: Call) -> Batch:
    """The batch that was sent; a large one is read in a thread.

    Raises:
        TooLarge: the body is over the limit.
        Unreadable: it cannot be read.
        Invalid: it is no list of entries, or of too many.
    """
    steps = decode_batch(call.data, call.context.settings.limits, msgpack=call.msgpack_in)
    if len(call.data) <= LARGE_BYTES:
        return finished(steps)
    return await call.context.decoding.run(call.caller.user_id, steps)


def decode_batch(data: bytes, limits: Limits, *, msgpack: bool) -> Steps[Batch]:
    """The batch in a body.

    Raises:
        Unreadable: it cannot be read.
        Invalid: it is no list of entries, or of too many.
    """
    if len(data) > LARGE_BYTES and not msgpack:
        row_parts = limits.dimension_max + limits.product_id_bytes_max
        yield from count_parts(data, limits.batch_rows_max * row_parts)
    entries = _batch.decode(data, msgpack=msgpack).embeddings
    if not 1 <= len(entries) <= limits.batch_rows_max:
        raise invalid(
            "embeddings", f"has {len(entries)} entries, and takes 1 to {limits.batch_rows_max}"
        )
    rows: list[Row] = []
    errors: dict[int, tuple[FieldError, ...]] = {}
    for place, raw in enumerate(entries):
        if place and place % DECODED_AT_ONCE == 0:
            yield 0
        at = f"embeddings[{place}]"
        try:
            entry = _entry.decode(raw, msgpack=msgpack, at=at)
            vector = floats(entry.vector, limits, f"{at}.vector", msgpack=msgpack)
            rows.append((entry.product_id, vector))
        except Invalid as error:
            rows.append(_NO_ROW)
            errors[place] = error.errors
    return Batch(rows, errors)


async def store_batch(
    call: Call,
    model_version: str,
    batch: Batch,
    metric: Metric | None,
    claim: Claim | None = None,
) -> StoredBatch:
    """Stores all of a batch, or nothing of it.

    Raises:
        Invalid: with every entry that is not valid, for whatever reason.
        MetricConflict: the model version has another metric.
        PartlyStored: DynamoDB took only a part in time.
    """
    service = call.context.resources.embedding_service
    if not batch.errors:
        return await service.store_batch(model_version, batch.rows, metric, claim)
    # Nothing will be stored: the other entries are looked at only to name those too.
    errors = dict(batch.errors)
    general: tuple[FieldError, ...] = ()
    try:
        model = await service.find_model(model_version)
        problems = service.find_problems(batch.rows, model, metric)
    except Invalid as error:
        problems, general = [], error.errors
    for problem in problems:
        if problem.row not in batch.errors:
            found = FieldError(f"embeddings[{problem.row}].{problem.field}", problem.message)
            errors[problem.row] = (*errors.get(problem.row, ()), found)
    raise Invalid(
        f"{len(errors)} of {len(batch.rows)} embeddings are not valid; none was stored",
        (*general, *(error for place in sorted(errors) for error in errors[place])),
    )
