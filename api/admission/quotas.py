"""Admission: how much work a process takes on, and how much of it one caller may have.

A caller may hold as many of a kind as are left free (the dynamic threshold of shared-memory
switches: Choudhury and Hahne, 1998). One caller alone gets half, n callers get 1/(n + 1) each, and
one more caller always fits: no caller can lock another out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from api import metrics
from core.errors import Overloaded, OverShare
from core.limits import (
    BATCH_ROWS_MAX,
    DIMENSION_MAX,
    EXCLUDE_MAX,
    FILTER_BYTES_MAX,
    PRODUCT_ID_BYTES_MAX,
    VECTORS_MAX,
)
from core.settings import Settings

_NUMBER_BYTES: Final = 32
"""Of one number in JSON: 24 characters at the most, a comma, and some indentation."""
_ESCAPED: Final = 6
"""Bytes of JSON that one byte of text may take: `a` may be written as `\\u0061`."""
_ID_BYTES: Final = _ESCAPED * PRODUCT_ID_BYTES_MAX + _NUMBER_BYTES
"""Of one product id in JSON."""
_SPARE_PART: Final = 4
"""Reads wait for each other while they hold no more than a fourth of what there is."""
_FRAME_BYTES: Final = 64 * 1024
"""Of all else in a body that carries vectors."""


class Quota:
    """A limited resource of the process, shared fairly among callers."""

    def __init__(self, name: str, total: int) -> None:
        """Takes the name, for metrics and errors, and the limit over all callers."""
        self.name = name
        self.total = total
        self.in_use = 0
        self._over_share = metrics.SHED.labels(name, "share")
        self._full = metrics.SHED.labels(name, "full")
        self._by_caller: dict[str, int] = {}

    def of(self, caller: str) -> int:
        """How much a caller holds."""
        return self._by_caller.get(caller, 0)

    def has_room(self, caller: str) -> bool:
        """Whether the caller may acquire one more."""
        return self.of(caller) < self.total - self.in_use

    def check(self, caller: str, amount: int = 1) -> None:
        """Raises what `acquire` would raise now.

        Raises:
            OverShare: the caller holds as much as is left free.
            Overloaded: nothing is left, and the caller holds nothing.
        """
        free = self.total - self.in_use
        mine = self.of(caller)
        if mine + amount > free:
            if mine:
                self._over_share.inc()
                raise OverShare(
                    f"this caller has too many {self.name} in flight; try again once some are done"
                )
            self._full.inc()
            raise Overloaded(f"too many {self.name} are in flight; try again shortly")

    def acquire(self, caller: str, amount: int = 1) -> None:
        """Acquires an amount for a caller, who must `release` it; raises what `check` does."""
        self.check(caller, amount)
        self.force_acquire(caller, amount)

    def force_acquire(self, caller: str, amount: int) -> None:
        """Acquires an amount over the limit too; the caller must `release` it."""
        self._by_caller[caller] = self._by_caller.get(caller, 0) + amount
        self.in_use += amount

    def release(self, caller: str, amount: int = 1) -> None:
        """Releases what was acquired."""
        left = self._by_caller[caller] - amount
        if left:
            self._by_caller[caller] = left
        else:
            del self._by_caller[caller]
        self.in_use -= amount


class Admission:
    """The quotas of a process. A request holds one unit of each kind of work that it waits for."""

    def __init__(self, settings: Settings) -> None:
        http, serving = settings.http, settings.serving
        self.reads = Quota("reads", http.memory_requests_max)
        """Requests that are answered from memory."""
        self.calls = Quota("requests", http.concurrent_requests_max)
        """Requests that call DynamoDB or S3."""
        self.arriving = Quota("bodies", http.arriving_bodies_max)
        """Bodies that are still arriving; such a request holds nothing else."""
        self.buffered = Quota("bytes of bodies", http.buffered_bytes_max)
        self.searches = Quota("large searches", serving.large_searches_max)
        """Searches too long for the event loop, waiting or running."""
        queue_ms = round(1000 * serving.search_queue_s)
        self.work = Quota("milliseconds of large searches", 2 * serving.search_threads * queue_ms)
        """Their estimated milliseconds on a thread. Half is one caller's: what the threads do in
        the time that a search may wait for its turn."""
        self.waits = Quota("waits for a watermark", http.watermark_waits_max)
        self.streams = Quota("streams of events", http.event_streams_max)

    @contextmanager
    def large_search(self, caller: str, work_ms: int) -> Iterator[None]:
        """Takes what a search on a thread needs. A caller that has none under way may begin any."""
        with self.slot(self.searches, caller):
            if self.work.of(caller):
                self.work.acquire(caller, work_ms)
            else:
                self.work.force_acquire(caller, work_ms)
            try:
                yield
            finally:
                self.work.release(caller, work_ms)

    @contextmanager
    def slot(self, quota: Quota, caller: str) -> Iterator[None]:
        """Holds one unit of a quota inside the block; raises what `Quota.check` does."""
        quota.acquire(caller)
        try:
            yield
        finally:
            quota.release(caller)

    @property
    def spare(self) -> bool:
        """Whether reads may wait for each other without any being refused for it.

        While at most a fourth is held, three fourths are free: more than any caller holds.
        """
        reads, buffered = self.reads, self.buffered
        return (
            _SPARE_PART * reads.in_use <= reads.total
            and _SPARE_PART * buffered.in_use <= buffered.total
        )

    def named(self) -> dict[str, Quota]:
        """All quotas, by their names in metrics."""
        quotas = (
            self.reads,
            self.calls,
            self.arriving,
            self.buffered,
            self.searches,
            self.work,
            self.waits,
            self.streams,
        )
        return {quota.name: quota for quota in quotas}

    @property
    def requests(self) -> int:
        """Requests in flight."""
        return self.reads.in_use + self.calls.in_use + self.arriving.in_use


class BodyLimits:
    """Bytes that a body may have, by what it carries: what the limits on its parts can need."""

    def __init__(self, settings: Settings) -> None:
        self._most = settings.http.body_bytes_max
        row = DIMENSION_MAX * _NUMBER_BYTES
        batch = BATCH_ROWS_MAX * (row + _ID_BYTES) + _FRAME_BYTES
        self.record = min(self._most, settings.http.record_bytes_max)
        """Of a user, a report, or the parameters of a build."""
        self.vector = min(self._most, row + _FRAME_BYTES)
        """Of one embedding."""
        self.batch = min(self._most, batch)
        self.search = self.search_of(DIMENSION_MAX)

    def search_of(self, dimension: int) -> int:
        """Of a search of a model version whose vectors have so many numbers.

        One vector of another dimension has room too, so that its error can name both numbers.
        """
        numbers = VECTORS_MAX * dimension + DIMENSION_MAX
        ids = EXCLUDE_MAX * _ID_BYTES
        return min(self._most, numbers * _NUMBER_BYTES + ids + FILTER_BYTES_MAX + _FRAME_BYTES)
