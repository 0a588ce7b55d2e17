"""Imports a file of embeddings into a model version, several batches at a time."""

from collections.abc import AsyncGenerator, Callable
from typing import Final

import msgspec

from core.concurrency import for_each, in_thread
from core.embedding_files.rows import Batch, EmbeddingReader, Row
from core.errors import FileError, PartlyStored, TableMissing, Unavailable
from core.limits import BATCH_ROWS_MAX
from core.models import BadRow, Metric
from core.retry import RetryPolicy
from core.usecases.embeddings import EmbeddingService

BATCHES_IN_FLIGHT: Final = 4
"""Each writes its rows by several BatchWriteItem calls side by side (K9_BATCH_CONCURRENCY)."""
WRITE_RETRY: Final = RetryPolicy(first_s=0.2, max_s=10.0, attempts_max=6)


class BatchResult(msgspec.Struct, frozen=True):
    """What became of one batch."""

    stored: int
    bad: list[BadRow]
    units: int
    """How much of the file the batch is, in `EmbeddingReader.units`."""
    end: int = 0
    """Rows of the file up to its end, the bad ones among them."""


class Imported(msgspec.Struct, frozen=True):
    """The result of an import, in rows."""

    stored: int
    bad: int


async def import_file(
    embeddings: EmbeddingService,
    model_version: str,
    reader: EmbeddingReader,
    *,
    rows_max: int = BATCH_ROWS_MAX,
    metric: Metric | None = None,
    on_batch: Callable[[BatchResult], None] = lambda _: None,
    position: int = 0,
) -> Imported:
    """Stores every valid row of a file.

    Batches are stored one by one until a row is stored, since the first write sets a new model
    version's dimension (that of most of its rows) and metric. Importing a file again overwrites the
    same rows with the same vectors, and with the same attributes where the reader reads any.

    Args:
        embeddings: Stores embeddings.
        model_version: The model version.
        reader: The opened file.
        rows_max: The size of a batch.
        metric: Of a new model version; cosine if None.
        on_batch: Called with the result of each batch, in any order.
        position: Rows from the start of the file, bad ones among them, that an earlier import of
            the same file has stored. They are validated again and count as stored, and are not
            written; a batch that begins before it and ends after it is.

    Raises:
        Invalid: the model version's name is not valid, or it is new and no dimension is that of
            most rows; nothing is stored then.
        MetricConflict: the model version has another metric.
        Unavailable: DynamoDB did not take a batch after all attempts.
        FileError: the file cannot be read from some point on; the rows before it are stored.
    """
    seen: set[int] = set()
    stored = bad = 0
    damage: FileError | None = None

    async def store(numbered: tuple[Batch, int]) -> None:
        nonlocal stored, bad
        batch, end = numbered
        result = await _store(
            embeddings, model_version, batch, metric, write=end > position, end=end
        )
        stored += result.stored
        bad += len(result.bad)
        on_batch(result)

    async def batches() -> AsyncGenerator[tuple[Batch, int], None]:
        nonlocal damage
        end = 0
        try:
            async for batch in in_thread(reader.batches(rows_max)):
                unique = _without_repeats(batch, seen)
                end += len(unique.rows) + len(unique.bad)
                if stored:
                    yield unique, end
                else:
                    await store((unique, end))
        except FileError as error:
            damage = error  # raised once the batches before it are stored

    await for_each(batches(), store, BATCHES_IN_FLIGHT)
    if damage is not None:
        raise damage
    return Imported(stored, bad)


def _without_repeats(batch: Batch, seen: set[int]) -> Batch:
    """The batch without ids of earlier rows: batches end in any order, so the last could not win.

    `seen` has 64-bit hashes: some 60 bytes a row, and one false repeat in 10^5 files of 10^7 rows.
    """
    rows: list[Row] = []
    bad = list(batch.bad)
    for row in batch.rows:
        digest = hash(row.product_id)
        if digest in seen:
            bad.append(BadRow(row.number, row.product_id, "product_id came before in this file"))
        else:
            seen.add(digest)
            rows.append(row)
    return Batch(rows, bad, batch.units)


async def _store(
    embeddings: EmbeddingService,
    model_version: str,
    batch: Batch,
    metric: Metric | None,
    *,
    write: bool,
    end: int,
) -> BatchResult:
    model = await WRITE_RETRY.call(
        lambda: embeddings.find_model(model_version), on=Unavailable, never=TableMissing
    )
    rows = [(row.product_id, row.vector) for row in batch.rows]
    bad = list(batch.bad)
    attributes = [row.attributes for row in batch.rows]
    problems = embeddings.find_problems(rows, model, metric, attributes=attributes)
    for index, errors in problems.items():
        row = batch.rows[index]
        reasons = "; ".join(f"{error.field} {error.message}" for error in errors)
        bad.append(BadRow(row.number, row.product_id, reasons))
    valid = [row for index, row in enumerate(rows) if index not in problems]
    own = [each for index, each in enumerate(attributes) if index not in problems]
    if valid and write:
        await WRITE_RETRY.call(
            lambda: embeddings.store_batch(model_version, valid, metric, attributes=own),
            on=(PartlyStored, Unavailable),
            never=TableMissing,
        )
    return BatchResult(len(valid), sorted(bad, key=lambda row: row.number), batch.units, end)
