"""Event loop delays: measured all the time, shown in the metrics and the log.

While a callback runs, the process answers, renews and reads nothing else. Work that takes longer
belongs in a thread; these delays show where that was forgotten.
"""

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter, thread_time
from typing import Final

from core import telemetry

WINDOW_S: Final = 15.0
"""The gauge shows the longest delay of this window and the one before it: a scrape at least every
15 s sees every peak."""
_LOG_EVERY_S: Final = 10.0
"""The shortest time between two log lines; each counts the stalls since the last one."""

_log = telemetry.logger(__name__)


class LoopProbe:
    """Wakes up at a fixed interval, and measures how late the event loop ran it."""

    def __init__(self, every_s: float, limit_s: float) -> None:
        """A stall shows as its length less up to `every_s`; one over `limit_s` is logged."""
        self._every_s = every_s
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._thread_s = 0.0
        """Processor time of the loop's thread when the probe was last scheduled."""
        self._window_ends = 0.0
        self._longest_s = self._longest_before_s = 0.0
        """The longest delays of the present window and of the one before it."""
        self._stalls = 0
        self._worst = 0.0, 0.0
        """Of the stalls not logged yet: the longest delay, and the processor time in it."""
        self._logs_from = 0.0

    def start(self) -> None:
        """Begins to measure."""
        self._schedule(perf_counter())

    def stop(self) -> None:
        """Ends it."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._due = self._longest_s = self._longest_before_s = 0.0

    def longest_s(self) -> float:
        """The longest recent delay in seconds, a present one included. Callable in any thread."""
        present_s = perf_counter() - self._due if self._due else 0.0
        return max(present_s, self._longest_s, self._longest_before_s)

    def _schedule(self, time_s: float) -> None:
        self._due = time_s + self._every_s
        self._thread_s = thread_time()
        self._timer = self._loop.call_later(self._every_s, self._measure)

    def _measure(self) -> None:
        time_s = perf_counter()
        delay_s = max(0.0, time_s - self._due)
        busy_s = thread_time() - self._thread_s
        self._schedule(time_s)
        telemetry.LOOP_DELAY.observe(delay_s)
        if time_s >= self._window_ends:
            self._window_ends = time_s + WINDOW_S
            self._longest_before_s, self._longest_s = self._longest_s, 0.0
        self._longest_s = max(self._longest_s, delay_s)
        if delay_s > self._limit_s:
            self._stalls += 1
            self._worst = max(self._worst, (delay_s, busy_s))
        if self._stalls and time_s >= self._logs_from:
            self._logs_from = time_s + _LOG_EVERY_S
            _log.warning(
                "event loop stalled",
                longest_s=round(self._worst[0], 3),
                # Processor time of it: the rest was spent in a call, or waiting for a processor.
                busy_s=round(self._worst[1], 3),
                stalls=self._stalls,
            )
            self._stalls, self._worst = 0, (0.0, 0.0)


@contextmanager
def watched_loop(every_s: float, limit_s: float) -> Iterator[None]:
    """Measures the running event loop until the end of the block; once per process."""
    probe = LoopProbe(every_s, limit_s)
    probe.start()
    telemetry.LOOP_DELAY_LONGEST.set_function(probe.longest_s)
    try:
        yield
    finally:
        probe.stop()


def freeze_memory() -> None:
    """Takes all objects of a started process out of garbage collection: they stay anyway.

    A full collection visits every object it knows, some 170,000 of the libraries alone, and stalls
    the event loop for 50 ms and more. That is why none is made here either: of what a start leaves,
    it would free 1,900 objects. From here on there are collections, if there were none before.
    """
    gc.freeze()
    gc.enable()
