"""One attempt at an import, from its claim to its end: download, store, report.

The claim is a lease with a fencing token, as that of a build. How far the rows are stored is
written with each heartbeat; a later attempt reads the file from its start again, validates all of
it, so that its report is whole, and writes only the rows after that position.
"""

import asyncio
import shutil
from pathlib import Path
from typing import Final, Literal, Self

import msgspec

from core import names, telemetry, tracing
from core.embedding_files.columns import Columns
from core.embedding_files.importing import BatchResult, import_file
from core.embedding_files.readers import open_embeddings
from core.embedding_files.rows import EmbeddingReader
from core.errors import (
    AlreadyExists,
    Corrupt,
    FileError,
    Invalid,
    K9Error,
    LeaseLost,
    MetricConflict,
    ModelBeingDeleted,
    ModelGone,
    NewerFormat,
    NotFound,
    Unavailable,
)
from core.index.cache import leased
from core.models import Import, ImportProgress
from core.queue import IMPORT_JOB, ImportJob
from core.repositories.imports import ImportState
from core.resources import Resources
from core.retry import RetryPolicy
from worker import metrics
from worker.heartbeat import Heartbeat
from worker.importing.bad_rows import BadRows, cut
from worker.reasons import reason_of
from worker.slots import Slots

_BACKOFF: Final = RetryPolicy(first_s=1.0, max_s=60.0)
_NEWER_WAIT_S: Final = 60.0
_RELEASE_TIMEOUT_S: Final = 10.0
_ERROR_BYTES_MAX: Final = 1000
"""Of the error in an import's row: a file may have a column whose type takes a megabyte to tell."""

_log = telemetry.logger(__name__)


class ImportRunner(Slots[ImportJob]):
    """Runs up to `imports_max` imports."""

    def __init__(
        self, resources: Resources, slot_freed: asyncio.Event | None = None, *, paused: bool = False
    ) -> None:
        """Starts imports at once, or if it is `paused` after `resume`."""

        async def claim(job: ImportJob) -> ImportAttempt | None:
            return await ImportAttempt.claim(resources, job)

        self.unreadable = ""
        """Why the reconciler cannot read the imports, as it was last logged."""
        slots = resources.settings.imports.imports_max
        super().__init__(slots, IMPORT_JOB, "import_id", claim, slot_freed, paused=paused)
        metrics.IMPORTS_RUNNING.set_function(lambda: self.running)


class ImportAttempt:
    """One worker's attempt at an import."""

    def __init__(self, resources: Resources, claimed: Import) -> None:
        self._resources = resources
        self._settings = resources.settings.building
        self._import = claimed
        self._state = ImportState(
            ImportProgress("download", 0, claimed.size_bytes),
            position=claimed.position,
            rows_stored=claimed.rows_stored,
            rows_bad=claimed.rows_bad,
            generation=claimed.generation,
        )
        self._bad_written = 0
        self._writing = asyncio.Lock()
        self._ended = False
        """No heartbeat may come after the end, and find that the lease is gone."""
        self._bad: BadRows | None = None
        self._heartbeat = Heartbeat(
            self._renew, lease_s=self._settings.lease_s, heartbeat_s=self._settings.heartbeat_s
        )
        work_dir = names.directory_of(self._settings.work_dir, resources.settings.environment)
        self._directory = work_dir / f"{claimed.import_id}.{claimed.fence}"
        self._log = _log.bind(
            import_id=claimed.import_id, model_version=claimed.model_version, fence=claimed.fence
        )

    @classmethod
    async def claim(cls, resources: Resources, job: ImportJob) -> Self | None:
        """Claims an import; None when another worker has it, it has ended, or DynamoDB is away."""
        try:
            claimed = await resources.imports.claim(job.import_id, job.fence)
        except (LeaseLost, Unavailable) as error:
            _log.info("import not claimed", import_id=job.import_id, reason=str(error))
            return None
        return cls(resources, claimed)

    async def run(self) -> None:
        """Runs the import to its end, or releases it for another attempt.

        Whatever happens is written to the import; only cancellation is raised.
        """
        row = self._import
        telemetry.join_logs(row.request_id, import_id=row.import_id)
        attributes: tracing.Attributes = {
            "k9.import_id": row.import_id,
            "k9.model_version": row.model_version,
            "k9.fence": row.fence,
        }
        with tracing.span("import", attributes=attributes):
            await self._run()

    async def _run(self) -> None:
        self._log.info("import claimed", position=self._import.position)
        if self._import.unreturned > self._settings.build_losses_max:
            # Its earlier attempts took their workers down: do not let it go on for ever.
            await self._fail(f"gave up after {self._import.unreturned - 1} attempts that were lost")
            return
        try:
            await self._heartbeat.run(self._work())
        except LeaseLost as error:
            self._log.warning("import lost", reason=str(error))
            tracing.fail("LeaseLost")
        except asyncio.CancelledError:
            await self.release("the worker was stopped")
            raise
        except Exception as error:  # noqa: BLE001 - an import must end or be retried
            await self._retry(error)
        finally:
            self._bad = None
            await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    async def _work(self) -> None:
        self._directory.mkdir(parents=True)
        with leased(self._directory), BadRows(self._directory / "bad-rows.jsonl") as bad:
            self._bad = bad
            try:
                await self._import_object(bad)
            except (FileError, Invalid, MetricConflict, ModelBeingDeleted, ModelGone) as error:
                await self._end("failed", str(error))
            else:
                await self._end("completed")

    async def _import_object(self, bad: BadRows) -> None:
        await self._check_model()
        path = self._directory / "object"
        await self._download(path)
        with await asyncio.to_thread(self._open, path) as reader:
            await self._store(reader, bad)
            await self._note_generation()
            if not self._state.rows_stored and not self._state.rows_bad:
                raise FileError(f"{reader.name}: has no rows")

    async def _check_model(self) -> None:
        """Raises: ModelGone: rows would go to another model version than before."""
        known = self._state.generation
        try:
            model = await self._resources.models.get_model(self._import.model_version)
        except NotFound:
            if not known:
                return
            raise ModelGone(f"{self._import.model_version} was deleted") from None
        if known and model.generation != known:
            raise ModelGone(f"{model.model_version} was deleted and created again")
        if not known:
            self._state = msgspec.structs.replace(self._state, generation=model.generation)

    async def _download(self, path: Path) -> None:
        row = self._import
        key = row.parameters.key
        if row.size_bytes > self._resources.settings.imports.import_bytes_max:
            limit = self._resources.settings.imports.import_bytes_max
            raise FileError(f"{key}: has {row.size_bytes} bytes, over the limit of {limit}")
        if not row.size_bytes:
            raise FileError(f"{key}: is empty")
        self._heartbeat.report(new_stage=True)
        try:
            await self._resources.objects.get_pinned(
                key, path, etag=row.etag or "", size=row.size_bytes, on_bytes=self._downloaded
            )
        except (AlreadyExists, Corrupt):
            raise FileError(f"{key}: has changed since the import was requested") from None
        except NotFound:
            raise FileError(f"{key}: was removed since the import was requested") from None

    def _downloaded(self, count: int) -> None:
        progress = ImportProgress("download", count, self._import.size_bytes)
        self._state = msgspec.structs.replace(self._state, progress=progress)
        self._heartbeat.report(new_stage=False)

    def _open(self, path: Path) -> EmbeddingReader:
        wanted = self._import.parameters
        columns = Columns(
            wanted.id_column,
            wanted.vector_column,
            wanted.attributes,
            id_option="id_column",
            vector_option="vector_column",
            attributes_option="attributes",
        )
        return open_embeddings(
            path, columns, self._resources.settings.files, name=wanted.key.rpartition("/")[2]
        )

    async def _store(self, reader: EmbeddingReader, bad: BadRows) -> None:
        """Stores the rows after the position, and validates all of them."""
        unit: Literal["bytes", "rows"] = "bytes" if reader.unit == "bytes" else "rows"
        done: dict[int, BatchResult] = {}
        """Results whose predecessors are missing, by the position at which they begin."""
        at = stored = units = 0

        def on_batch(result: BatchResult) -> None:
            nonlocal at, stored, units
            done[result.end - result.stored - len(result.bad)] = result
            while (following := done.pop(at, None)) is not None:
                at = following.end
                stored += following.stored
                units += following.units
                bad.add(following.bad)
            self._state = ImportState(
                ImportProgress("store", units, reader.units or 0, unit),
                position=max(at, self._import.position),
                rows_stored=max(stored, self._import.rows_stored),
                rows_bad=max(bad.count, self._import.rows_bad),
                generation=self._state.generation,
            )
            self._heartbeat.report(new_stage=False)

        self._state = msgspec.structs.replace(
            self._state, progress=ImportProgress("store", 0, reader.units or 0, unit)
        )
        self._heartbeat.report(new_stage=True)
        await import_file(
            self._resources.embedding_service,
            self._import.model_version,
            reader,
            metric=self._import.parameters.metric,
            on_batch=on_batch,
            position=self._import.position,
        )

    async def _renew(self) -> None:
        await self._note_generation()
        async with self._writing:
            if self._ended:
                return
            await self._resources.imports.beat(self._import, self._state)
            await self._write_bad_rows()

    async def _note_generation(self) -> None:
        """Notes which model version has the rows, once there are some."""
        if not self._state.generation and self._state.rows_stored:
            model = await self._resources.models.known_model(self._import.model_version)
            self._state = msgspec.structs.replace(self._state, generation=model.generation)

    async def _write_bad_rows(self) -> None:
        """Writes the first bad rows, once there are more than an earlier attempt has written."""
        if self._bad is None or self._bad.count < self._import.rows_bad:
            return
        first = list(self._bad.first)
        if len(first) > self._bad_written:
            await self._resources.imports.write_bad_rows(self._import, first)
            self._bad_written = len(first)

    async def _end(self, status: str, error: str = "") -> None:
        """Writes the report, and ends the import."""
        row, error = self._import, cut(error, _ERROR_BYTES_MAX)
        bad_rows_key: str | None = None
        if self._bad is not None and self._bad.count:
            await asyncio.to_thread(self._bad.flush)
            environment = self._resources.settings.environment
            bad_rows_key = names.bad_rows_key(environment, row.import_id, row.fence)
            await self._resources.objects.put(bad_rows_key, self._bad.path)
        async with self._writing:
            await self._write_bad_rows()
            await self._resources.imports.end(
                row, status, error, state=self._state, bad_rows_key=bad_rows_key
            )
            self._ended = True
        metrics.IMPORTS_ENDED.labels(status).inc()
        metrics.IMPORT_ROWS.labels("stored").inc(self._state.rows_stored)
        metrics.IMPORT_ROWS.labels("bad").inc(self._state.rows_bad)
        self._log.info(
            f"import {status}",
            rows_stored=self._state.rows_stored,
            rows_bad=self._state.rows_bad,
            **({"reason": error} if error else {}),
        )

    async def _fail(self, error: str) -> None:
        """Ends the import as failed; what is stored stays."""
        tracing.fail("ImportFailed")
        try:
            await self._end("failed", error)
        except K9Error as not_written:
            self._log.warning("import's end not written", reason=str(not_written))

    async def release(self, reason: str, *, wait_s: float = 0.0, fault: bool = False) -> None:
        """Releases the claim; another worker may take it after `wait_s`."""
        self._log.warning("import released", reason=reason, wait_s=round(wait_s, 1))
        tracing.fail("ImportReleased")
        row, reason = self._import, cut(reason, _ERROR_BYTES_MAX)
        try:
            async with asyncio.timeout(_RELEASE_TIMEOUT_S):
                await self._resources.imports.release(row, reason, wait_s=wait_s, fault=fault)
        except (K9Error, TimeoutError) as error:  # its lease will expire
            self._log.warning("import not released", reason=str(error))
            return
        if not fault:
            await self._resources.queue.enqueue_import(row.import_id, row.fence, row.trace)

    async def _retry(self, error: Exception) -> None:
        """Releases the import for a later attempt, or fails it after the last one."""
        reason = reason_of(error)
        if isinstance(error, K9Error):
            self._log.warning("import interrupted", reason=str(error))
        else:
            self._log.exception("unexpected error in an import", exc_info=error)
        if isinstance(error, NewerFormat):
            await self.release(reason, wait_s=_NEWER_WAIT_S)
            return
        if self._state.position > self._import.position:
            # Only faults without progress between them count: a large file may meet several.
            self._import = msgspec.structs.replace(self._import, faults=0)
        faults = self._import.faults + 1
        if faults >= self._settings.build_attempts_max:
            await self._fail(f"gave up after {faults} attempts: {reason}")
            return
        await self.release(reason, wait_s=_BACKOFF.delay_s(faults), fault=True)
