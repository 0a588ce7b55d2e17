"""Follows one model version: reads what changed since its build, and applies it to what answers."""

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from datetime import timedelta
from time import time
from typing import Final

from api import metrics
from api.serving.automatic_builds import AutomaticBuilds
from api.serving.background import cancelled, supervised
from api.serving.change_reader import ChangeReader, Changes
from api.serving.delta import DeltaBuffer
from api.serving.row_fetcher import RowFetcher
from api.serving.segment import Segment
from api.serving.snapshot import Snapshot
from core import telemetry
from core.errors import K9Error, NotYetVisible, Unavailable
from core.models import Model, Watermark, now, parse_timestamp, timestamp
from core.notifications import ChangeNotification
from core.resources import Resources
from core.retry import RetryPolicy

VISIBLE_WAIT_S: Final = 1.0
"""How long a search waits for the write that its `min_watermark` names."""
_CARRY_IDS: Final = 500
_POLL_GAP_S: Final = 0.5
"""Between two polls of the shards, however many are asked for."""
_STALE_POLLS: Final = 3
"""After so many intervals without a complete poll it is unknown what changed."""
_RETRY: Final = RetryPolicy(first_s=0.5, max_s=10.0, jitter=0.5)
_CLOCK_AHEAD_S: Final = 60.0
"""Watermarks from further ahead are rejected: no clock is off by so much."""

_log = telemetry.logger(__name__)


class ModelReplica:
    """What this process serves of one model version. One task reads rows, one polls the shards."""

    def __init__(
        self,
        resources: Resources,
        model: Model,
        builds: AutomaticBuilds,
        bytes_left: Callable[[str], int],
    ) -> None:
        """Follows nothing yet; `bytes_left` tells what the other model versions leave to one."""
        settings = resources.settings.serving
        self.name = model.model_version
        self.model = model
        """As last listed; always of the same data."""
        self.snapshot: Snapshot | None = None
        """What answers; None before the first segment is activated, and once closed."""
        self._changes = ChangeReader(resources, model)
        self._builds = builds
        self._bytes_left = bytes_left
        self._settings = settings
        self._current: DeltaBuffer | None = None
        self._next: DeltaBuffer | None = None
        """A version that is being caught up, and gets all changes already."""
        self._fetcher = RowFetcher(
            self._changes.read,
            self._apply,
            gather_s=settings.hint_gather_s,
            queued_max=settings.delta_rows_hard,
        )
        self._notified_ms = 0
        """When the oldest notification was sent that is not applied yet."""
        self._poll_requested = asyncio.Event()
        self._awaiting_poll: list[asyncio.Future[None]] = []
        self._awaiting_snapshot: set[asyncio.Event] = set()
        self._ageing: asyncio.TimerHandle | None = None
        """Publishes the snapshot again once its last poll is too old."""
        self._closed = False
        self._tasks = [
            asyncio.create_task(supervised(work)) for work in (self._fetcher.run, self._poll_loop)
        ]

    @property
    def resident_bytes(self) -> int:
        """Memory that it takes, about."""
        current = self._current
        return 0 if current is None else current.segment.resident_bytes + current.resident_bytes

    async def activate(self, segment: Segment) -> None:
        """Puts a segment to use, once all that changed since its build is known.

        The segment before it answers until then, so that at no moment a deleted product is back.
        A first segment answers at once, and its changes follow.

        Raises:
            Unavailable: it does not fit the memory budget, or the replica was closed meanwhile.
        """
        coming = self._next = DeltaBuffer(segment)
        try:
            before = self._current
            if before is not None:
                ids = list(before.entries)
                for start in range(0, len(ids), _CARRY_IDS):
                    coming.carry_over(before, ids[start : start + _CARRY_IDS])
                    await asyncio.sleep(0)
                ids = before.attributes.product_ids
                for start in range(0, len(ids), _CARRY_IDS):
                    coming.attributes.carry_over(before.attributes, ids[start : start + _CARRY_IDS])
                    await asyncio.sleep(0)
                if before.overflowed:
                    # It knows deletions by its mask alone, and the GSI may not show them yet.
                    await self._fetcher.fetch(await asyncio.to_thread(before.masked_in, segment))
                # An older build may have rows that a later one knew to be deleted.
                older = coming.watermark < before.watermark
                if before.polled_at or before.overflowed or older:
                    await self._poll_once(coming)
            self._check_open()
            self._check_memory(segment)
            self._current = coming
        finally:
            self._next = None
        metrics.SWAPS.labels(self.name).inc()
        metrics.show_index(segment.manifest, segment.rows, segment.resident_bytes)
        self._builds.reset(self.name)
        self._publish(coming)
        self._wake_waiting()
        self.poll_soon()

    def notify(self, change: ChangeNotification) -> None:
        """Takes a notification that rows changed."""
        deltas = [each for each in (self._current, self._next) if each is not None]
        ids: Sequence[str] = change.product_ids
        if all(each.overflowed for each in deltas):  # new products are of no use
            row_of = [each.segment.row_of for each in deltas]
            ids = [name for name in ids if any(find(name) is not None for find in row_of)]
        if not ids:
            return
        self._notified_ms = self._notified_ms or change.sent_ms
        dropped = self._fetcher.enqueue(ids, rows=not change.attributes_only)
        if dropped:
            telemetry.NOTIFICATIONS_LOST.labels("no room").inc(dropped)
            self.poll_soon()

    def poll_soon(self) -> None:
        """Has the shards polled now: notifications may have been missed."""
        self._poll_requested.set()

    async def reflecting(self, after: Watermark) -> Snapshot:
        """A snapshot that reflects a write: by reading what was written, or by a newer segment.

        Raises:
            NotYetVisible: none did in time.
        """
        if after.generation is not None and after.generation < self.model.generation:
            raise NotYetVisible(
                f"this write was to an earlier {self.name}, which was deleted since"
            )
        changed = asyncio.Event()
        catching_up = asyncio.create_task(self.catch_up(after))
        catching_up.add_done_callback(lambda _: changed.set())
        self._awaiting_snapshot.add(changed)
        try:
            async with asyncio.timeout(VISIBLE_WAIT_S):
                while (snapshot := self.snapshot) is not None:
                    if snapshot.reflects(after) or (catching_up.done() and catching_up.result()):
                        return snapshot
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            pass
        finally:
            self._awaiting_snapshot.discard(changed)
            catching_up.cancel()
        raise NotYetVisible(
            f"the index of {self.name} does not reflect this write yet; try again later"
        )

    async def catch_up(self, after: Watermark) -> bool:
        """Has a write applied, by reading its row, or by polling the shards for a batch.

        False where that cannot be, however long it would be waited for.
        """
        current = self._current
        ahead = timestamp(now() + timedelta(seconds=_CLOCK_AHEAD_S))
        if current is None or current.overflowed or after.moment > ahead:
            return False
        if after.generation not in {None, self.model.generation}:
            return False
        if after.product_id is not None:
            try:
                await self._fetcher.fetch([after.product_id], urgent=True)
            except Unavailable:  # closed meanwhile
                return False
        else:
            polled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._awaiting_poll.append(polled)
            self.poll_soon()
            await polled
        return self._current is not None and not self._current.overflowed

    def close(self) -> None:
        """Ends following at once: nothing answers any more, and no segment is activated."""
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        self._fetcher.close()
        if self._ageing is not None:
            self._ageing.cancel()
        self.snapshot = None
        self._wake_waiting()
        metrics.forget(self.name)

    async def aclose(self) -> None:
        """Closes it, waits for its tasks to end, and lets go of the segment.

        The segment leaves memory, and its files may be removed, when the last request that has it
        ends: not only with the next garbage collection, which may be hours away.
        """
        self.close()
        await cancelled(*self._tasks)
        self._tasks.clear()  # their exceptions have tracebacks, whose frames have the segment
        self._ageing = self._current = None

    def _check_open(self) -> None:
        """Raises Unavailable once closed: the data may have been restored to another state."""
        if self._closed:
            raise Unavailable(f"{self.name} was dropped while its changes were read")

    def _check_memory(self, segment: Segment) -> None:
        left = self._bytes_left(self.name)
        if segment.resident_bytes > left:
            raise Unavailable(
                f"{segment.build_id} takes {segment.resident_bytes} bytes of memory, and {left} "
                "are left of K9_LOADED_BYTES_MAX",
                public="the index does not fit into the memory that is left",
            )

    def _wake_waiting(self) -> None:
        for event in self._awaiting_snapshot:
            event.set()

    # --- applying and publishing ----------------------------------------------------------------

    def _apply(self, found: Changes) -> None:
        for delta in (self._current, self._next):
            if delta is not None:
                delta.apply(found.rows)
                delta.attributes.apply(found.attributes, found.rows, added=not delta.overflowed)
                self._check_limits(delta)
        if self._notified_ms:
            metrics.FRESH_LAG.labels(self.name).set(max(0.0, time() - self._notified_ms / 1000))
            self._notified_ms = 0
        if self._current is not None:
            self._publish(self._current)

    def _check_limits(self, delta: DeltaBuffer, coming: int = 0) -> None:
        """Lets a delta overflow that is, or with `coming` more rows would be, over a limit."""
        rows_max, resident = self._settings.delta_rows_hard, delta.segment.resident_bytes
        if resident + delta.resident_bytes > self._bytes_left(self.name):
            self._overflow(delta, "memory")
            delta.attributes.overflow()
        if delta.overflowed:
            return
        if len(delta.entries) - delta.changed > rows_max:
            delta.forget()  # entries without effect are kept only because the GSI lags
        if delta.changed + coming > rows_max:
            self._overflow(delta, "rows")

    def _overflow(self, delta: DeltaBuffer, reason: str) -> None:
        if delta.overflowed:
            return
        delta.overflow()
        _log.warning(
            "too much changed: until the next build only deletions are applied",
            model_version=self.name,
            build_id=delta.segment.build_id,
            limit=reason,
        )

    def _publish(self, delta: DeltaBuffer) -> None:
        """Answers from what is known now, where this is what answers."""
        if self._closed or delta is not self._current:
            return
        loop = asyncio.get_running_loop()
        overflowed = delta.overflowed or delta.attributes.overflowed
        complete = not overflowed and loop.time() < delta.complete_until
        # The clocks of writers may be behind by as much as a poll reaches back.
        polled_at = "" if overflowed else self._overlapping(delta.polled_at)
        self.snapshot = Snapshot(
            delta.segment, delta.snapshot(), complete=complete, polled_at=polled_at
        )
        metrics.FRESH_ROWS.labels(self.name).set(delta.changed)
        metrics.FRESH_BYTES.labels(self.name).set(delta.resident_bytes)
        if overflowed or delta.changed > self._settings.delta_rows_soft:
            self._builds.request(self.model, "much has changed")
        if self._ageing is not None:
            self._ageing.cancel()
        if loop.time() < delta.complete_until:
            self._ageing = loop.call_at(delta.complete_until, self._publish, delta)

    # --- polling the shards ---------------------------------------------------------------------

    async def _poll(self, delta: DeltaBuffer) -> None:
        """Reads to its end what the shards show as changed since the last poll, or the build."""
        began, began_s = timestamp(now()), asyncio.get_running_loop().time()
        since = max(delta.watermark, self._overlapping(delta.polled_at))
        unread: dict[str, None] = {}
        overflowed = delta.overflowed
        async with aclosing(self._changes.rows_since(since)) as pages:
            async for page in pages:
                unread.update(dict.fromkeys(await asyncio.to_thread(delta.differing, page)))
                # Some may have been read meanwhile, for a notification.
                self._check_limits(delta, sum(name not in delta.entries for name in unread))
                if delta.overflowed != overflowed:
                    break
        if delta.overflowed != overflowed:  # from now on other rows of each page matter
            await self._poll(delta)
            return
        await self._fetcher.fetch(unread)
        await self._poll_attributes(delta, since)
        delta.polled_at = began
        interval_s = max(_POLL_GAP_S, self._settings.poll_s)
        delta.complete_until = began_s + _STALE_POLLS * interval_s
        delta.forget(since)
        metrics.FRESH_POLLED.labels(self.name).set(parse_timestamp(began).timestamp())

    async def _poll_attributes(self, delta: DeltaBuffer, since: str) -> None:
        """The same of attributes, where any were written."""
        if not await self._changes.has_attributes():
            return
        attributes = delta.attributes
        since = since if attributes.polled else attributes.watermark
        unread: dict[str, None] = {}
        async with aclosing(self._changes.attributes_since(since)) as pages:
            async for page in pages:
                differing = await asyncio.to_thread(attributes.differing, page)
                unread.update(dict.fromkeys(differing))
        await self._fetcher.fetch(unread, rows=False)
        attributes.polled = True

    def _overlapping(self, polled_at: str) -> str:
        """When a poll after one that began then reads from; no moment stays none."""
        if not polled_at:
            return ""
        return timestamp(
            parse_timestamp(polled_at) - timedelta(seconds=self._settings.poll_overlap_s)
        )

    async def _poll_once(self, coming: DeltaBuffer) -> None:
        """Polls until all is read since the version's watermark, or the replica is closed."""
        _log.info(
            "reading what changed before a version is activated",
            model_version=self.name,
            build_id=coming.segment.build_id,
            since=coming.watermark,
        )
        async for _ in _RETRY.attempts():
            self._check_open()
            try:
                await self._poll(coming)
            except K9Error as error:
                _log.warning("reading changes failed", model_version=self.name, detail=str(error))
            else:
                return

    async def _poll_loop(self) -> None:
        """Polls regularly, and when asked to, until cancelled."""
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            awaiting, self._awaiting_poll = self._awaiting_poll, []
            self._poll_requested.clear()
            earliest = loop.time() + _POLL_GAP_S
            wait_s = self._settings.poll_s * random.uniform(0.75, 1.25)  # noqa: S311 - jitter
            delta = self._current
            try:
                if delta is not None:
                    await self._poll(delta)
            except K9Error as error:
                _log.warning("polling failed", model_version=self.name, detail=str(error))
                self._awaiting_poll = awaiting + self._awaiting_poll
                failures += 1
                wait_s = min(_RETRY.delay_s(failures), self._settings.poll_s)
            else:
                failures = 0
                for polled in awaiting:
                    if not polled.done():
                        polled.set_result(None)
            if delta is not None:
                await delta.attributes.compact()
                self._publish(delta)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._poll_requested.wait()
            await asyncio.sleep(max(0.0, earliest - loop.time()))
