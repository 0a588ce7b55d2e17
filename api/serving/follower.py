"""Follows one model version: what changed since its build is read, and applied to what answers."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import aclosing, suppress
from datetime import timedelta
from time import time
from typing import Any, Final

from api import telemetry as metrics
from api.serving.catalogue import Catalogue
from api.serving.delta import Buffer
from api.serving.loaded import LoadedIndex
from api.serving.reading import Found, Reading
from api.serving.view import View
from core import telemetry
from core.errors import Conflict, K9Error, NotFound
from core.hints import Hint
from core.models import Model, now, parse_timestamp, timestamp
from core.resources import Resources
from core.watermarks import Watermark

_CARRY_IDS: Final = 500
_POLL_GAP_S: Final = 0.1
"""Between two looks at the shards, however many are asked for."""
_BACKOFF_FIRST_S: Final = 0.5
_BACKOFF_MAX_S: Final = 10.0
_BUILD_AGAIN_FIRST_S: Final = 60.0
_BUILD_AGAIN_MAX_S: Final = 3600.0
_CLOCKS_S: Final = 2.0
"""What two clocks may differ by: a look at the shards counts as made so much earlier."""
_FUTURE_S: Final = 60.0
"""A watermark from further ahead is nobody's clock."""

_log = telemetry.logger(__name__)


class _Stage:
    """One loaded version with its buffer."""

    def __init__(self, index: LoadedIndex) -> None:
        self.index = index
        self.buffer = Buffer(index)
        self.polled_at = ""
        """When the last whole look at the shards began; empty before the first one."""
        self.over = False
        """Too much changed: nothing is applied until the next version."""

    def give_up(self) -> None:
        """Drops the buffer."""
        self.over = True
        self.buffer = Buffer(self.index)

    def view(self) -> View:
        """What answers now."""
        if self.over:
            return View(self.index)
        buffer, polled = self.buffer, self.polled_at
        return View(
            self.index,
            buffer.delta(),
            buffer.entries,
            fresh=buffer.changed if polled else None,
            polled_at=_earlier(polled, _CLOCKS_S) if polled else "",
        )


class Follower:
    """The changes of one model version. Two tasks: one reads rows, one looks at the shards."""

    def __init__(self, resources: Resources, catalogue: Catalogue, model: Model) -> None:
        settings = resources.settings.serving
        self.name = model.model_version
        self._model = model
        self._resources = resources
        self._catalogue = catalogue
        self._settings = settings
        self._stage: _Stage | None = None
        self._next: _Stage | None = None
        """A version that is about to answer, and gets all changes already."""
        self._reading = Reading(
            lambda ids: resources.embeddings.read_rows(self.name, ids),
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
        self._tasks = [
            asyncio.create_task(self._lasting(self._reading.run)),
            asyncio.create_task(self._lasting(self._poll_on)),
        ]

    async def adopt(self, index: LoadedIndex) -> None:
        """Puts a version to use, once all that changed since is known for it too.

        The version before it answers until then, so that at no moment a deleted product is back.
        A first version answers at once, and its changes follow.

        Raises:
            Unavailable: it does not fit the memory budget.
        """
        stage = self._next = _Stage(index)
        try:
            before = self._stage
            if before is not None and not before.over:
                ids = list(before.buffer.entries)
                for start in range(0, len(ids), _CARRY_IDS):
                    stage.buffer.carry(before.buffer, ids[start : start + _CARRY_IDS])
                    await asyncio.sleep(0)
                if before.polled_at:
                    await self._caught_up(stage, before)
            self._catalogue.swap(index, stage.view())
            self._stage = stage
        finally:
            self._next = None
        self._build_at, self._build_wait_s = 0.0, _BUILD_AGAIN_FIRST_S
        self._show(stage)
        self.look_soon()

    def hinted(self, hint: Hint) -> None:
        """Takes a hint that rows changed."""
        stage = self._next or self._stage
        if stage is None or stage.over:
            return
        self._hinted_ms = self._hinted_ms or hint.sent_ms
        lost = self._reading.hint(hint.product_ids)
        if lost:
            telemetry.HINTS_LOST.labels("no room").inc(lost)
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
        if after.product_id is not None:
            await self._reading.now([after.product_id], urgent=True)
        else:
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._awaiting.append(waiting)
            self.look_soon()
            await waiting
        return self._stage is not None and not self._stage.over

    async def aclose(self) -> None:
        """Stops following."""
        tasks = [*self._tasks, *([self._requesting] if self._requesting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        metrics.forget_fresh(self.name)

    def _apply(self, found: Found) -> None:
        for stage in (self._stage, self._next):
            if stage is not None and not stage.over:
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
        idle = len(buffer.entries) - buffer.changed
        if idle > self._settings.delta_rows_hard:
            buffer.forget("9")  # they are kept for the sake of a lagging index alone
        if buffer.changed + coming > self._settings.delta_rows_hard:
            reason = "rows"
        elif not self._catalogue.has_room(self.name, buffer.resident_bytes):
            reason = "memory"
        else:
            return
        stage.give_up()
        _log.warning(
            "too much changed: searches go on from the index alone until the next build",
            model_version=self.name,
            build_id=stage.index.build_id,
            limit=reason,
        )

    def _show(self, stage: _Stage) -> None:
        self._catalogue.show(stage.view(), stage.buffer.resident_bytes)
        metrics.FRESH_ROWS.labels(self.name).set(stage.buffer.changed)
        metrics.FRESH_BYTES.labels(self.name).set(stage.buffer.resident_bytes)
        self._consider_build(stage)

    # --- looking at the shards ------------------------------------------------------------------

    async def _poll(self, stage: _Stage) -> None:
        """Reads what the shards show as changed since the last look, or since the build.

        Raises:
            K9Error: it could not be read to its end.
        """
        began = timestamp(now())
        since = stage.buffer.watermark
        if stage.polled_at:
            since = max(since, _earlier(stage.polled_at, self._settings.poll_overlap_s))
        wanted: dict[str, None] = {}
        coming = 0
        async with aclosing(self._resources.embeddings.changed_since(self._model, since)) as pages:
            async for page in pages:
                differing = await asyncio.to_thread(stage.buffer.differing, page)
                known = stage.buffer.entries
                coming += sum(i not in wanted and i not in known for i in differing)
                wanted.update(dict.fromkeys(differing))
                self._hold_limits(stage, coming)
                if stage.over:
                    return
        await self._reading.now(wanted)
        stage.polled_at = began
        stage.buffer.forget(since)
        metrics.FRESH_POLLED.labels(self.name).set(parse_timestamp(began).timestamp())

    async def _caught_up(self, stage: _Stage, before: _Stage) -> None:
        """Looks until all is read since the version's watermark, however long it takes.

        It is of no more use where the version that answers has given up too.
        """
        backoff_s = _BACKOFF_FIRST_S
        while not (stage.polled_at or stage.over or before.over):
            try:
                await self._poll(stage)
            except K9Error as error:
                _log.warning("changes not read", model_version=self.name, detail=str(error))
                await asyncio.sleep(random.uniform(backoff_s / 2, backoff_s))  # noqa: S311 - jitter
                backoff_s = min(2 * backoff_s, _BACKOFF_MAX_S)

    async def _poll_on(self) -> None:
        """Looks now and then, and when asked to, until cancelled."""
        backoff_s = _BACKOFF_FIRST_S
        while True:
            awaiting, self._awaiting = self._awaiting, []
            wait_s = self._settings.poll_s * random.uniform(0.75, 1.25)  # noqa: S311 - jitter
            stage = self._stage
            try:
                if stage is not None and not stage.over:
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
            await self._pause(wait_s)

    async def _pause(self, wait_s: float) -> None:
        await asyncio.sleep(_POLL_GAP_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._poked.wait()
        self._poked.clear()

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
        model = self._catalogue.known.get(self.name)
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
            build = await self._resources.build_requests.request_again(self.name)
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
    return timestamp(parse_timestamp(moment) - timedelta(seconds=seconds))
