"""How late the event loop comes to its work: measured always, told in the metrics and the log.

While one callback runs nothing else in the process is answered, renewed or read. What is too long
for the loop goes to a thread; this tells where that was forgotten.
"""

import asyncio
import gc
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter, thread_time
from typing import Final

from core import telemetry

WINDOW_S: Final = 15.0
"""For how long the longest delay stays in the gauge: whoever scrapes as often sees every peak."""
_SAY_EVERY_S: Final = 10.0

_log = telemetry.logger(__name__)


class Longest:
    """The longest delay of a window of time. One thread notes them, any thread may ask."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._peaks: deque[tuple[float, float]] = deque()
        """When and how long; each is longer than all that came after it."""

    def note(self, moment: float, late_s: float) -> None:
        """Takes a delay that ended at `moment`, which never goes back."""
        peaks = self._peaks
        while peaks and peaks[-1][1] <= late_s:
            peaks.pop()
        peaks.append((moment, late_s))
        while peaks[0][0] <= moment - self._window_s:
            peaks.popleft()

    def at(self, moment: float) -> float:
        """The longest that ended within the window before `moment`; 0 where there is none."""
        since = moment - self._window_s
        return next((late_s for ended, late_s in tuple(self._peaks) if ended > since), 0.0)


class LoopProbe:
    """Asks the running event loop to be woken again and again, and notes how late it is."""

    def __init__(self, every_s: float, limit_s: float, say_every_s: float = _SAY_EVERY_S) -> None:
        """Nothing is measured before `start`.

        Args:
            every_s: How often to be woken. A stall shows as its length less up to so much.
            limit_s: A delay over it is a warning in the log.
            say_every_s: No two warnings come sooner; the next one counts what was passed over.
        """
        self._every_s = every_s
        self._limit_s = limit_s
        self._say_every_s = say_every_s
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._longest = Longest(WINDOW_S)
        self._stalls = 0
        self._worst = 0.0, 0.0
        """Of the stalls not yet told of: how late, and how much of that was work."""
        self._used = 0.0
        """Processor time of the loop's thread, at the last look."""
        self._silent_until = 0.0

    def start(self) -> None:
        """Begins to measure."""
        self._ask(perf_counter())

    def stop(self) -> None:
        """Measures no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._due = 0.0
        self._longest = Longest(WINDOW_S)

    def longest_s(self) -> float:
        """The longest delay within the window, one that still lasts included. From any thread."""
        moment, due = perf_counter(), self._due
        lasting_s = moment - due if due else 0.0
        return max(lasting_s, self._longest.at(moment))

    def _ask(self, moment: float) -> None:
        self._due = moment + self._every_s
        self._used = thread_time()
        self._timer = self._loop.call_later(self._every_s, self._wake)

    def _wake(self) -> None:
        moment = perf_counter()
        late_s = max(0.0, moment - self._due)
        busy_s = thread_time() - self._used
        self._ask(moment)
        telemetry.LOOP_DELAY.observe(late_s)
        self._longest.note(moment, late_s)
        if late_s > self._limit_s:
            self._stalls += 1
            self._worst = max(self._worst, (late_s, busy_s))
        if self._stalls and moment >= self._silent_until:
            self._silent_until = moment + self._say_every_s
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
    """Measures the running event loop until the end of the block; one a process."""
    probe = LoopProbe(every_s, limit_s)
    probe.start()
    telemetry.LOOP_DELAY_LONGEST.set_function(probe.longest_s)
    try:
        yield
    finally:
        probe.stop()


def settle_memory() -> None:
    """For a process that has started: what is there now is there to stay.

    A full collection goes through every object that is left to the collector, some 170,000 of the
    libraries alone, and holds up the event loop for 50 ms and more.
    """
    gc.collect()
    gc.freeze()
