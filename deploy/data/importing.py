"""A file of embeddings into a model version: many batches in flight, nothing lost in silence."""

import asyncio
import random
from collections.abc import Callable, Iterator

import msgspec

from core.errors import PartlyStored, Unavailable
from core.models import Metric
from core.usecases.embeddings import EmbeddingService
from deploy.data.bulk import patiently
from deploy.data.formats.readers import Source
from deploy.data.formats.rows import BadRow, Batch, Row

BATCHES_IN_FLIGHT = 4
"""Each writes its rows by several BatchWriteItem calls side by side (K9_BATCH_CONCURRENCY)."""
TRIES_MAX = 6
_BACKOFF_FIRST_S, _BACKOFF_MAX_S = 0.2, 10.0


class Moved(msgspec.Struct, frozen=True):
    """What one batch came to."""

    stored: int
    bad: list[BadRow]
    units: int
    """How much further the file has been read, in `Source.units`."""


class Imported(msgspec.Struct, frozen=True):
    """What an import came to."""

    stored: int
    bad: int


async def import_file(
    embeddings: EmbeddingService,
    model_version: str,
    source: Source,
    *,
    rows_max: int,
    metric: Metric | None = None,
    moved: Callable[[Moved], None] = lambda _moved: None,
) -> Imported:
    """Stores every row that holds; those that do not are told of through `moved`.

    Batches go alone until one has stored a row, since that fixes a new model version's dimension
    (that of most of its rows) and metric. Running it again overwrites the same rows with the same
    vectors.

    Raises:
        Invalid: the model version's name does not hold, or it is new, and no dimension is that of
            most rows; nothing is stored then.
        MetricConflict: the model version has another metric.
        Unavailable: DynamoDB still did not take a batch after all tries.
        CommandError: the file stops to read at some point; what came before it is stored.
    """
    batches = source.batches(rows_max)
    seen: set[int] = set()
    stored = bad = 0
    pending: set[asyncio.Task[Moved]] = set()

    async def collect(done: set[asyncio.Task[Moved]]) -> None:
        nonlocal stored, bad
        for task in done:
            result = task.result()
            stored += result.stored
            bad += len(result.bad)
            moved(result)

    try:
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            batch = _without_repeats(batch, seen)
            task = asyncio.create_task(_store(embeddings, model_version, batch, metric))
            pending.add(task)
            if not stored or len(pending) >= BATCHES_IN_FLIGHT:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                await collect(done)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            await collect(done)
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    return Imported(stored, bad)


def _without_repeats(batch: Batch, seen: set[int]) -> Batch:
    """The batch less ids that came before: batches end in any order, so the last could not win.

    `seen` has 64-bit hashes: some 60 bytes a row, and one false repeat in 10^5 files of 10^7 rows.
    """
    rows: list[Row] = []
    bad = list(batch.bad)
    for row in batch.rows:
        mark = hash(row.product_id)
        if mark in seen:
            bad.append(BadRow(row.number, row.product_id, "product_id came before in this file"))
        else:
            seen.add(mark)
            rows.append(row)
    return Batch(rows, bad, batch.units)


async def _store(
    embeddings: EmbeddingService, model_version: str, batch: Batch, metric: Metric | None
) -> Moved:
    model = await patiently(lambda: embeddings.find_model(model_version))
    rows = [(row.product_id, row.vector) for row in batch.rows]
    bad = list(batch.bad)
    faults: dict[int, list[str]] = {}
    for problem in embeddings.find_problems(rows, model, metric):
        faults.setdefault(problem.row, []).append(f"{problem.field} {problem.message}")
    for index, reasons in faults.items():
        row = batch.rows[index]
        bad.append(BadRow(row.number, row.product_id, "; ".join(reasons)))
    good = [row for index, row in enumerate(rows) if index not in faults]
    if good:
        for pause_s in pauses():
            try:
                await embeddings.store_batch(model_version, good, metric)
                break
            except (PartlyStored, Unavailable):
                if pause_s is None:
                    raise
                await asyncio.sleep(pause_s)
    return Moved(len(good), sorted(bad, key=lambda row: row.number), batch.units)


def pauses() -> Iterator[float | None]:
    """Seconds to wait after each try that failed, with full jitter; None after the last."""
    for attempt in range(TRIES_MAX - 1):
        yield random.uniform(0, min(_BACKOFF_FIRST_S * 2**attempt, _BACKOFF_MAX_S))  # noqa: S311
    yield None
