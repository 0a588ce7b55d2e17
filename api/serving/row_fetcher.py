"""Reads changed rows with consistent reads, one round after the other: a later read is newer."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from core import telemetry
from core.errors import K9Error, Unavailable
from core.retry import RetryPolicy

_ROUND_IDS: Final = 200
"""Two requests to DynamoDB; applying so many rows takes the event loop a millisecond or two."""
_RETRY: Final = RetryPolicy(first_s=0.1, max_s=5.0, jitter=0.0)

_log = telemetry.logger(__name__)

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Waiter:
    """Someone who waits until some rows were all read."""

    left: int
    urgent: bool
    done: "asyncio.Future[None]"

    def row_read(self) -> None:
        self.left -= 1
        if not self.left and not self.done.done():
            self.done.set_result(None)


_Waiters = list[_Waiter | None]
"""The waiters for a row; None for a notification, for which nobody waits."""


class RowFetcher(Generic[T]):
    """The rows and attributes of one model version that are to be read."""

    def __init__(
        self,
        read: Callable[[list[str], set[str]], Awaitable[T]],
        apply: Callable[[T], None],
        *,
        gather_s: float,
        queued_max: int,
    ) -> None:
        """Nothing is read before `run`.

        Args:
            read: The present attributes of these ids, and the rows of some of them.
            apply: Takes what was found.
            gather_s: How long a round waits for further ids.
            queued_max: Ids that may be queued because of notifications.
        """
        self._read = read
        self._apply = apply
        self._gather_s = gather_s
        self._queued_max = queued_max
        self._queued: dict[str, _Waiters] = {}
        self._urgent: dict[str, _Waiters] = {}
        self._rows_of: set[str] = set()
        """The queued ids of which the row is read, and not its attributes alone."""
        self._not_empty = asyncio.Event()
        self._urgent_added = asyncio.Event()
        self._waiters: set[_Waiter] = set()
        self._closed = False

    def close(self) -> None:
        """Fails all who wait, now and later: nothing will be read any more."""
        self._closed = True
        for waiter in self._waiters:
            if not waiter.done.done():
                waiter.done.set_exception(Unavailable("changed rows are not read any more"))

    def enqueue(self, product_ids: Iterable[str], *, rows: bool = True) -> int:
        """Has rows read soon; returns how many ids were dropped because the queue is full.

        Without `rows` their attributes alone.
        """
        dropped = 0
        for product_id in product_ids:
            waiters = self._queued.get(product_id)
            if waiters is not None:
                if None not in waiters:
                    waiters.append(None)
            elif len(self._queued) < self._queued_max:
                self._queued[product_id] = [None]
            else:
                dropped += 1
                continue
            if rows:
                self._rows_of.add(product_id)
        self._not_empty.set()
        return dropped

    async def fetch(
        self, product_ids: Iterable[str], *, urgent: bool = False, rows: bool = True
    ) -> None:
        """Returns once rows (each id once) were read, later than now, and applied.

        Without `rows` their attributes alone.

        Raises:
            Unavailable: it was closed.
        """
        ids = list(product_ids)
        if self._closed:
            raise Unavailable("changed rows are not read any more")
        if not ids:
            return
        waiter = _Waiter(len(ids), urgent, asyncio.get_running_loop().create_future())
        queue = self._urgent if urgent else self._queued
        for product_id in ids:
            queue.setdefault(product_id, []).append(waiter)
        if rows:
            self._rows_of.update(ids)
        self._not_empty.set()
        if urgent:
            self._urgent_added.set()
        self._waiters.add(waiter)
        try:
            await waiter.done
        finally:
            self._waiters.discard(waiter)

    async def run(self) -> None:
        """Reads what is queued, one round after the other, until cancelled."""
        failures = 0
        while True:
            await self._not_empty.wait()
            if len(self._queued) < _ROUND_IDS:
                await self._wait_unless_urgent(self._gather_s)
            taken, rows_of = self._take()
            try:
                await self._round(list(taken), rows_of)
            except K9Error as error:
                _log.warning(
                    "reading changed rows failed", error=type(error).__name__, rows=len(taken)
                )
                self._put_back(taken)
                self._rows_of |= rows_of
                failures += 1
                # After a short while no longer than nobody waits for an answer.
                await asyncio.sleep(_RETRY.first_s)
                await self._wait_unless_urgent(_RETRY.delay_s(failures) - _RETRY.first_s)
                continue
            except Exception:  # noqa: BLE001 - one row must not hold up all others for good
                _log.exception("applying changed rows failed", rows=len(taken))
                await self._one_by_one(taken, rows_of)
            failures = 0
            for waiters in taken.values():
                for waiter in waiters:
                    if waiter is not None:
                        waiter.row_read()

    async def _round(self, product_ids: list[str], rows_of: set[str]) -> None:
        if product_ids:
            self._apply(await self._read(product_ids, rows_of))

    async def _one_by_one(self, taken: dict[str, _Waiters], rows_of: set[str]) -> None:
        """Reads each row of a round that failed in a way that no other try would mend.

        A row that fails alone is given up: whoever waits for it goes on to wait for the others.
        """
        for product_id in list(taken):
            try:
                await self._round([product_id], rows_of)
            except K9Error:
                self._put_back({product_id: taken.pop(product_id)})
                self._rows_of |= rows_of & {product_id}
            except Exception:  # noqa: BLE001 - as above
                _log.exception("a changed row cannot be applied", product_id=product_id)

    async def _wait_unless_urgent(self, seconds: float) -> None:
        """Waits, but not while somebody waits for an urgent read."""
        self._urgent_added.clear()
        if not self._urgent:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._urgent_added.wait()

    def _take(self) -> tuple[dict[str, _Waiters], set[str]]:
        """The ids of the next round, without those that nobody waits for any more.

        The second are those of which the row is read.
        """
        taken: dict[str, _Waiters] = {}
        for queue in (self._urgent, self._queued):
            while queue and len(taken) < _ROUND_IDS:
                product_id = next(iter(queue))
                waiters = _pending(queue.pop(product_id))
                if waiters:
                    taken.setdefault(product_id, []).extend(waiters)
        rows_of = taken.keys() & self._rows_of
        self._rows_of -= rows_of
        if not self._urgent and not self._queued:
            self._not_empty.clear()
            self._rows_of.clear()  # of waiters that left
        return taken, rows_of

    def _put_back(self, taken: dict[str, _Waiters]) -> None:
        """Urgent reads are first again."""
        for product_id, waiters in taken.items():
            for waiter in _pending(waiters):
                urgent = waiter is not None and waiter.urgent
                queue = self._urgent if urgent else self._queued
                queue.setdefault(product_id, []).append(waiter)
        if self._urgent or self._queued:
            self._not_empty.set()


def _pending(waiters: _Waiters) -> _Waiters:
    """Those that still wait, and notifications."""
    return [waiter for waiter in waiters if waiter is None or not waiter.done.done()]
