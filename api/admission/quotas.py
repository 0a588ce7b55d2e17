"""What a process takes on, by what requests wait for, and how much of each one caller may hold.

A caller may hold as many of a kind as are left free (the dynamic threshold of shared-memory
switches: Choudhury and Hahne, 1998). One caller alone gets half, n callers get 1/(n + 1) each, and
room is always left for one more: what one caller holds never turns another away.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from api import metrics
from core.errors import Overloaded, OverShare
from core.settings import Limits, Settings

_RETRY_AFTER_S: Final = 1
_NUMBER_BYTES: Final = 32
"""Of one number in JSON: 24 characters at the most, a comma, and some indentation."""
_ESCAPED: Final = 6
"""Bytes of JSON that one byte of text may take: `a` may be written as `\\u0061`."""
_FRAME_BYTES: Final = 64 * 1024
"""Of all else in a body that carries vectors."""


class Share:
    """Something of which a process has so much, and each caller a part."""

    def __init__(self, name: str, total: int) -> None:
        """Takes the name for metrics and errors, and how much there is."""
        self.name = name
        self.total = total
        self.held = 0
        self._by_caller: dict[str, int] = {}

    def of(self, caller: str) -> int:
        """What a caller holds."""
        return self._by_caller.get(caller, 0)

    def has_room(self, caller: str) -> bool:
        """Whether the caller may take one more."""
        return self._by_caller.get(caller, 0) < self.total - self.held

    def check(self, caller: str, amount: int = 1) -> None:
        """Refuses what `take` would refuse now.

        Raises:
            OverShare: the caller holds as much as is left free.
            Overloaded: nothing is left, and the caller holds nothing.
        """
        free = self.total - self.held
        mine = self._by_caller.get(caller, 0)
        if mine + amount > free:
            if mine:
                metrics.SHED.labels(self.name, "share").inc()
                raise OverShare(
                    f"this caller has too many {self.name} in flight; try again once some are done",
                    retry_after_s=_RETRY_AFTER_S,
                )
            metrics.SHED.labels(self.name, "full").inc()
            raise Overloaded(
                f"too many {self.name} are in flight; try again shortly",
                retry_after_s=_RETRY_AFTER_S,
            )

    def take(self, caller: str, amount: int = 1) -> None:
        """Takes so much for a caller; `give_back` must follow.

        Raises:
            OverShare, Overloaded: as `check` says.
        """
        mine = self._by_caller.get(caller, 0)
        if mine + amount > self.total - self.held:
            self.check(caller, amount)
        self._by_caller[caller] = mine + amount
        self.held += amount

    def take_anyway(self, caller: str, amount: int) -> None:
        """Takes so much, whatever is left; `give_back` must follow."""
        self._by_caller[caller] = self._by_caller.get(caller, 0) + amount
        self.held += amount

    def give_back(self, caller: str, amount: int = 1) -> None:
        """Gives back what was taken."""
        left = self._by_caller[caller] - amount
        if left:
            self._by_caller[caller] = left
        else:
            del self._by_caller[caller]
        self.held -= amount


class Admission:
    """All shares of a process. A request holds one of each kind that it waits for."""

    def __init__(self, settings: Settings) -> None:
        http, serving = settings.http, settings.serving
        self.reads = Share("reads", http.memory_requests_max)
        """Requests that are answered from memory."""
        self.calls = Share("requests", http.concurrent_requests_max)
        """Requests that call DynamoDB or S3."""
        self.arriving = Share("bodies", http.arriving_bodies_max)
        """Bodies that are still arriving; such a request holds nothing else."""
        self.buffered = Share("bytes of bodies", http.buffered_bytes_max)
        self.searches = Share("large searches", serving.large_searches_max)
        """Searches too long for the event loop, waiting or running."""
        queue_ms = round(1000 * serving.search_queue_s)
        self.work = Share("large searches", 2 * serving.search_threads * queue_ms)
        """Their estimated milliseconds on a thread. Half is one caller's: what the threads do in
        the time that a search may wait for its turn."""
        self.waits = Share("waits for a watermark", http.watermark_waits_max)
        self.streams = Share("streams of events", http.event_streams_max)

    @contextmanager
    def large_search(self, caller: str, work_ms: int) -> Iterator[None]:
        """Takes what a search on a thread needs. A caller that has none under way may begin any.

        Raises:
            OverShare, Overloaded: as `Share.check` says.
        """
        self.searches.take(caller)
        try:
            if self.work.of(caller):
                self.work.take(caller, work_ms)
            else:
                self.work.take_anyway(caller, work_ms)
            try:
                yield
            finally:
                self.work.give_back(caller, work_ms)
        finally:
            self.searches.give_back(caller)

    @contextmanager
    def one_of(self, share: Share, caller: str) -> Iterator[None]:
        """Takes one of a share meanwhile.

        Raises:
            OverShare, Overloaded: as `Share.check` says.
        """
        share.take(caller)
        try:
            yield
        finally:
            share.give_back(caller)

    @property
    def requests(self) -> int:
        """Requests in flight."""
        return self.reads.held + self.calls.held + self.arriving.held


class BodyLimits:
    """Bytes that a body may have, by what it carries: what the limits on its parts can need."""

    def __init__(self, settings: Settings) -> None:
        limits = settings.limits
        self._most = settings.http.body_bytes_max
        self._limits = limits
        self._ids = limits.exclude_max * _id_bytes(limits)
        row = limits.dimension_max * _NUMBER_BYTES
        batch = limits.batch_rows_max * (row + _id_bytes(limits)) + _FRAME_BYTES
        self.record = min(self._most, settings.http.record_bytes_max)
        """Of a user, a report, or the parameters of a build."""
        self.vector = min(self._most, row + _FRAME_BYTES)
        """Of one embedding."""
        self.batch = min(self._most, batch)
        self.search = self.search_of(limits.dimension_max)

    def search_of(self, dimension: int) -> int:
        """Of a search of a model version whose vectors have so many numbers.

        One vector of another dimension has room too, so that its error can name both numbers.
        """
        numbers = self._limits.vectors_max * dimension + self._limits.dimension_max
        return min(self._most, numbers * _NUMBER_BYTES + self._ids + _FRAME_BYTES)


def _id_bytes(limits: Limits) -> int:
    return _ESCAPED * limits.product_id_bytes_max + _NUMBER_BYTES
