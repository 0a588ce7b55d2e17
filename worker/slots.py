"""What one worker process works on under leases at the same time: builds, or imports.

Attempts are tasks of the process, not of the queue's listener: when Redis is lost the listener ends
and is started anew, and they go on.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from core import telemetry, tracing

_CLAIM_TIMEOUT_S = 10.0
"""For the claims in flight when the worker stops; one unanswered by then is left to its lease."""

_log = telemetry.logger(__name__)


class Job(Protocol):
    """What the queue has of something to work on."""

    @property
    def trace(self) -> str | None:
        """The trace that the claim belongs to."""


J = TypeVar("J", bound=Job)


class Attempt(Protocol):
    """One worker's attempt at something, from its claim to its end."""

    async def run(self) -> None:
        """Works to the end, or releases the claim; only cancellation is raised."""

    async def release(self, reason: str) -> None:
        """Releases the claim for another worker."""


class Slots(Generic[J]):
    """Runs up to so many attempts."""

    def __init__(
        self,
        slots: int,
        job_name: str,
        id_name: str,
        claim: Callable[[J], Awaitable[Attempt | None]],
        slot_freed: asyncio.Event | None = None,
        *,
        paused: bool = False,
    ) -> None:
        """Makes ready for jobs of this name, in which `id_name` says what is worked on.

        `claim` returns None where it cannot be claimed. `slot_freed` is set whenever an attempt has
        ended, and cleared by whoever waits for it. A failed claim does not count: the next one is
        likely to fail too. Paused, nothing starts until `resume`.
        """
        self._job_name = job_name
        self.id_name = id_name
        self._claim_attempt = claim
        self.slot_freed = slot_freed or asyncio.Event()
        self._slots = slots
        self._used = 0
        self._claiming: set[asyncio.Task[bool]] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False
        self._paused = paused
        self._reason = ""

    @property
    def running(self) -> int:
        """The number of attempts that run."""
        return len(self._running)

    @property
    def free_slots(self) -> int:
        """The number of attempts that can be started now."""
        return 0 if self._paused else self._slots - self._used

    def pause(self, reason: str) -> bool:
        """Starts nothing until `resume`, and releases what runs; whether the reason is new."""
        is_new = reason != self._reason
        self._paused, self._reason = True, reason
        for task in self._running:
            task.cancel()
        return is_new

    def resume(self) -> None:
        """Starts attempts again."""
        self._paused, self._reason = False, ""

    async def start(self, job: J) -> bool:
        """Claims and starts; returns once it is claimed.

        False when no slot is free, another worker has it, it has ended, or the worker stops.
        """
        if self._closed or not self.free_slots:
            return False
        self._used += 1
        # A claim that is cancelled in flight may succeed, and nobody would do the work.
        claiming = asyncio.create_task(self._claim(job))
        self._claiming.add(claiming)
        claiming.add_done_callback(self._claiming.discard)
        return await asyncio.shield(claiming)

    async def drain(self) -> None:
        """Waits until nothing is running."""
        while self._running:
            await asyncio.gather(*self._running, return_exceptions=True)

    async def close(self) -> None:
        """Releases everything for other workers; nothing further starts."""
        self._closed = True
        await asyncio.sleep(0)  # a task cancelled before its first step would release nothing
        for task in self._running:
            task.cancel()
        if self._claiming:
            _, unanswered = await asyncio.wait(self._claiming, timeout=_CLAIM_TIMEOUT_S)
            for claim in unanswered:
                claim.cancel()
            await asyncio.gather(*unanswered, return_exceptions=True)
        await self.drain()

    async def _claim(self, job: J) -> bool:
        started = False
        try:
            named: tracing.Attributes = {f"k9.{self.id_name}": getattr(job, self.id_name)}
            with tracing.span(self._job_name, "consumer", parent=job.trace, attributes=named):
                attempt = await self._claim_attempt(job)
                if attempt is not None and self._closed:
                    await attempt.release("the worker was stopped")
                elif attempt is not None:
                    task = asyncio.create_task(attempt.run())
                    self._running.add(task)
                    task.add_done_callback(self._ended)
                    started = True
        finally:
            if not started:
                self._used -= 1
        return started

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        self._used -= 1
        self.slot_freed.set()
        if not task.cancelled() and task.exception() is not None:
            _log.error("unexpected error in an attempt's task", exc_info=task.exception())
