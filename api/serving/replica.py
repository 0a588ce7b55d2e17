"""Follows one model version: what changed since its build is read, and applied to what answers."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from datetime import timedelta
from time import time
from typing import Any, Final

from api import metrics
from api.serving.delta import DeltaBuffer
from api.serving.registry import IndexRegistry
from api.serving.row_fetcher import Found, RowFetcher
from api.serving.segment import Segment
from api.serving.snapshot import Snapshot
from core import telemetry
from core.errors import Conflict, K9Error, NotFound, Unavailable
from core.models import Model, Watermark, now, parse_timestamp, timestamp
from core.notifications import ChangeNotification
from core.resources import Resources
from core.settings import Serving

_CARRY_IDS: Final = 500
_POLL_GAP_S: Final = 0.5
"""From one look at the shards to the next, however many are asked for."""
_STALE_POLLS: Final = 3
"""After so many intervals without a whole look nobody knows what changed: some have failed."""
_BACKOFF_FIRST_S: Final = 0.5
_BACKOFF_MAX_S: Final = 10.0
_BUILD_AGAIN_FIRST_S: Final = 60.0
_BUILD_AGAIN_MAX_S: Final = 3600.0
_FUTURE_S: Final = 60.0
"""A watermark from further ahead is nobody's clock."""

_log = telemetry.logger(__name__)


class _Stage:
    """One loaded version with its buffer."""

    def __init__(self, index: Segment, settings: Serving) -> None:
        self.index = index
        self.buffer = DeltaBuffer(index)
        self.polled_at = ""
        """When the last whole look at the shards began; empty before the first one."""
        self.known_until = 0.0
        """By the event loop's clock: from then on that look is too old to tell what changed."""
        self._settings = settings

    @property
    def over(self) -> bool:
        """Too much changed: until the next version it is applied only that something is deleted."""
        return self.buffer.overflowed

    def polled(self, moment: str, since_s: float) -> None:
        """Notes a whole look at the shards that began then; `since_s` is the loop's clock."""
        self.polled_at = moment
        self.known_until = since_s + _STALE_POLLS * max(_POLL_GAP_S, self._settings.poll_s)

    def snapshot(self) -> Snapshot:
        """What answers now."""
        delta = self.buffer.snapshot()
        if self.buffer.overflowed:
            return Snapshot(self.index, delta)
        return Snapshot(
            self.index,
            delta,
            complete=asyncio.get_running_loop().time() < self.known_until,
            # The clocks of writers may be behind by as much as a look reaches back.
            polled_at=_earlier(self.polled_at, self._settings.poll_overlap_s),
        )


class ModelReplica:
    """The changes of one model version. Two tasks: one reads rows, one looks at the shards."""

    def __init__(self, resources: Resources, registry: IndexRegistry, model: Model) -> None:
        settings = resources.settings.serving
        self.name = model.model_version
        self._model = model
        self._resources = resources
        self._registry = registry
        self._settings = settings
        self._stage: _Stage | None = None
        self._next: _Stage | None = None
        """A version that is about to answer, and gets all changes already."""
        self._reading = RowFetcher(
            lambda ids: resources.embeddings.read_rows(self.name, ids, model.generation),
            self._apply,
            gather_s=settings.hint_gather_s,
            waiting_max=settings.delta_rows_hard,
        )
        self._hinted_ms = 0
        """When the oldest hint was sent that is not applied yet."""
        self._poked = asyncio.Event()
        self._awaiting: list[asyncio.Future[None]] = []
        self._build_at = 0.0
        self._build_wait_s = _BUILD_AGAIN_FIRST_S
        self._requesting: asyncio.Task[None] | None = None
        self._ageing: asyncio.TimerHandle | None = None
        """Shows the present stage again once its last look is too old."""
        self._closed = False
        self._tasks = [
            asyncio.create_task(self._lasting(self._reading.run)),
            asyncio.create_task(self._lasting(self._poll_on)),
        ]

    async def adopt(self, index: Segment) -> None:
        """Puts a version to use, once all that changed since is known for it too.

        The version before it answers until then, so that at no moment a deleted product is back.
        A first version answers at once, and its changes follow.

        Raises:
            Unavailable: it does not fit the memory budget, or following ended meanwhile.
        """
        stage = self._next = _Stage(index, self._settings)
        try:
            before = self._stage
            if before is not None:
                ids = list(before.buffer.entries)
                for start in range(0, len(ids), _CARRY_IDS):
                    stage.buffer.carry_over(before.buffer, ids[start : start + _CARRY_IDS])
                    await asyncio.sleep(0)
                if before.polled_at or before.over:
                    await self._caught_up(stage)
            self._check_open()
            self._registry.swap(index, stage.snapshot())
            self._stage = stage
        finally:
            self._next = None
        self._build_at, self._build_wait_s = 0.0, _BUILD_AGAIN_FIRST_S
        self._show(stage)
        self.look_soon()

    def hinted(self, hint: ChangeNotification) -> None:
        """Takes a hint that rows changed."""
        stages = [stage for stage in (self._stage, self._next) if stage is not None]
        ids: Sequence[str] = hint.product_ids
        if all(stage.over for stage in stages):  # new products are of no use to any of them
            rows = [stage.index.row_of for stage in stages]
            ids = [name for name in ids if any(row_of(name) is not None for row_of in rows)]
        if not ids:
            return
        self._hinted_ms = self._hinted_ms or hint.sent_ms
        lost = self._reading.hint(ids)
        if lost:
            telemetry.NOTIFICATIONS_LOST.labels("no room").inc(lost)
            self.look_soon()

    def look_soon(self) -> None:
        """Has the shards looked through now: hints may have been missed."""
        self._poked.set()

    async def bring(self, after: Watermark) -> bool:
        """Has a write applied, by reading its row, or the shards for a batch.

        False where that cannot be, whatever is waited for.
        """
        stage = self._stage
        ahead = timestamp(now() + timedelta(seconds=_FUTURE_S))
        if stage is None or stage.over or after.moment > ahead:
            return False
        if after.generation not in {None, self._model.generation}:
            return False
        if after.product_id is not None:
            try:
                await self._reading.now([after.product_id], urgent=True)
            except Unavailable:  # it was closed; a version of the data as restored may yet come
                return False
        else:
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._awaiting.append(waiting)
            self.look_soon()
            await waiting
        return self._stage is not None and not self._stage.over

    def close(self) -> None:
        """Ends following at once: whoever waits for it is told, and no version is put to use."""
        if self._closed:
            return
        self._closed = True
        for task in (*self._tasks, self._requesting):
            if task is not None:
                task.cancel()
        self._reading.close()
        if self._ageing is not None:
            self._ageing.cancel()
        metrics.forget_fresh(self.name)

    async def aclose(self) -> None:
        """Closes it, waits for its tasks to end, and lets go of the index.

        The index leaves memory, and its files may be removed, when the last request that has it
        ends: not only with the next garbage collection, which may be hours away.
        """
        self.close()
        tasks = [*self._tasks, *([self._requesting] if self._requesting else [])]
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()  # their exceptions have tracebacks, whose frames have the index
        self._requesting = self._ageing = self._stage = None

    def _check_open(self) -> None:
        """Raises Unavailable once closed: the data may have been restored to another state."""
        if self._closed:
            raise Unavailable(f"{self.name} was dropped while its changes were read")

    def _apply(self, found: Found) -> None:
        for stage in (self._stage, self._next):
            if stage is not None:
                stage.buffer.apply(found)
                self._hold_limits(stage)
        if self._hinted_ms:
            metrics.FRESH_LAG.labels(self.name).set(max(0.0, time() - self._hinted_ms / 1000))
            self._hinted_ms = 0
        if self._stage is not None:
            self._show(self._stage)

    def _hold_limits(self, stage: _Stage, coming: int = 0) -> None:
        """Gives a buffer up that is, or with `coming` more rows would be, over a limit."""
        buffer = stage.buffer
        if buffer.overflowed:
            return
        idle = len(buffer.entries) - buffer.changed
        if idle > self._settings.delta_rows_hard:
            buffer.forget()  # they are kept for the sake of a lagging index alone
        if buffer.changed + coming > self._settings.delta_rows_hard:
            reason = "rows"
        elif not self._registry.has_room(self.name, buffer.resident_bytes):
            reason = "memory"
        else:
            return
        buffer.overflow()
        _log.warning(
            "too much changed: until the next build only deletions are applied",
            model_version=self.name,
            build_id=stage.index.build_id,
            limit=reason,
        )

    def _show(self, stage: _Stage) -> None:
        self._registry.show(stage.snapshot(), stage.buffer.resident_bytes)
        metrics.FRESH_ROWS.labels(self.name).set(stage.buffer.changed)
        metrics.FRESH_BYTES.labels(self.name).set(stage.buffer.resident_bytes)
        self._consider_build(stage)
        loop = asyncio.get_running_loop()
        if self._ageing is not None:
            self._ageing.cancel()
        if loop.time() < stage.known_until:
            self._ageing = loop.call_at(stage.known_until, self._show, stage)

    # --- looking at the shards ------------------------------------------------------------------

    async def _poll(self, stage: _Stage) -> None:
        """Reads what the shards show as changed since the last look, or since the build.

        Raises:
            K9Error: it could not be read to its end.
        """
        began, began_s = timestamp(now()), asyncio.get_running_loop().time()
        since = stage.buffer.watermark
        if stage.polled_at:
            since = max(since, _earlier(stage.polled_at, self._settings.poll_overlap_s))
        wanted: dict[str, None] = {}
        over = stage.over
        async with aclosing(self._resources.embeddings.changed_since(self._model, since)) as pages:
            async for page in pages:
                differing = await asyncio.to_thread(stage.buffer.differing, page)
                wanted.update(dict.fromkeys(differing))
                # Some may have been read meanwhile, for a hint.
                known = stage.buffer.entries
                self._hold_limits(stage, sum(name not in known for name in wanted))
                if stage.over != over:
                    break
        if stage.over != over:  # a full buffer, which stays so, takes other rows from each page
            await self._poll(stage)
            return
        await self._reading.now(wanted)
        stage.polled(began, began_s)
        stage.buffer.forget(since)
        metrics.FRESH_POLLED.labels(self.name).set(parse_timestamp(began).timestamp())

    async def _caught_up(self, stage: _Stage) -> None:
        """Looks until all is read since the version's watermark, however long it takes.

        Raises:
            Unavailable: following ended meanwhile.
        """
        backoff_s = _BACKOFF_FIRST_S
        _log.info(
            "reading what changed before a version is put to use",
            model_version=self.name,
            build_id=stage.index.build_id,
            since=stage.buffer.watermark,
        )
        while not stage.polled_at:
            self._check_open()
            try:
                await self._poll(stage)
            except K9Error as error:
                _log.warning("changes not read", model_version=self.name, detail=str(error))
                await asyncio.sleep(random.uniform(backoff_s / 2, backoff_s))  # noqa: S311 - jitter
                backoff_s = min(2 * backoff_s, _BACKOFF_MAX_S)

    async def _poll_on(self) -> None:
        """Looks now and then, and when asked to, until cancelled."""
        backoff_s = _BACKOFF_FIRST_S
        loop = asyncio.get_running_loop()
        while True:
            awaiting, self._awaiting = self._awaiting, []
            self._poked.clear()
            soonest = loop.time() + _POLL_GAP_S
            wait_s = self._settings.poll_s * random.uniform(0.75, 1.25)  # noqa: S311 - jitter
            stage = self._stage
            try:
                if stage is not None:
                    await self._poll(stage)
                    backoff_s = _BACKOFF_FIRST_S
            except K9Error as error:
                _log.warning("changes not looked up", model_version=self.name, detail=str(error))
                self._awaiting = awaiting + self._awaiting
                wait_s = random.uniform(backoff_s / 2, backoff_s)  # noqa: S311 - jitter
                backoff_s = min(2 * backoff_s, _BACKOFF_MAX_S, self._settings.poll_s)
            else:
                for future in awaiting:
                    if not future.done():
                        future.set_result(None)
            if stage is not None and stage is self._stage:
                self._show(stage)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._poked.wait()
            await asyncio.sleep(max(0.0, soonest - loop.time()))

    async def _lasting(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs what never ends; a mistake of ours in it is logged, and it begins again."""
        while True:
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - without it changes were never applied again
                _log.error("following broke", model_version=self.name, exc_info=error)
                self.look_soon()
            await asyncio.sleep(_BACKOFF_MAX_S)

    # --- a build when much has changed ----------------------------------------------------------

    def _consider_build(self, stage: _Stage) -> None:
        """Requests a build past the soft limit, again with backoff while none comes of it."""
        clock = asyncio.get_running_loop().time()
        much = stage.over or stage.buffer.changed > self._settings.delta_rows_soft
        if not much or clock < self._build_at:
            return
        model = self._registry.known.get(self.name)
        if model is not None and (model.pinned or model.open_build_id is not None):
            return
        self._build_at = clock + self._build_wait_s
        self._build_wait_s = min(2 * self._build_wait_s, _BUILD_AGAIN_MAX_S)
        self._requesting = asyncio.create_task(self._request_build())

    async def _request_build(self) -> None:
        try:
            model = await self._resources.models.get_model(self.name)
            if model.pinned or model.open_build_id is not None:
                return
            build = await self._resources.build_service.request_automatic(self.name)
        except (Conflict, NotFound) as error:
            _log.info("no build requested", model_version=self.name, reason=str(error))
        except K9Error as error:
            _log.warning("build not requested", model_version=self.name, reason=str(error))
        else:
            _log.info(
                "build requested: much has changed",
                model_version=self.name,
                build_id=build.build_id,
            )


def _earlier(moment: str, seconds: float) -> str:
    """A moment less so many seconds; no moment stays none."""
    if not moment:
        return ""
    return timestamp(parse_timestamp(moment) - timedelta(seconds=seconds))
