"""Retries: exponential backoff with jitter, in one policy type.

The event loop's clock is the only one used, so cancellation ends a retry at once, and a test that
controls the loop's clock controls the retries too.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec

T = TypeVar("T")

_DOUBLINGS_MAX: Final = 60
"""Beyond any cap; more of them would overflow a float."""


class RetryPolicy(msgspec.Struct, frozen=True):
    """How long to wait between attempts, and how many attempts to make."""

    first_s: float
    """The longest delay after the first failure; it doubles with each further one."""
    max_s: float
    """The longest delay after any number of failures."""
    attempts_max: int | None = None
    """None: no limit."""
    jitter: float = 1.0
    """The share of each delay that is random, 0 to 1. 1 is full jitter: 0 to the whole delay."""

    def delay_s(self, failures: int) -> float:
        """Seconds to wait after this many failures in a row, at least 1."""
        longest_s = min(self.first_s * 2.0 ** min(failures - 1, _DOUBLINGS_MAX), self.max_s)
        return random.uniform((1 - self.jitter) * longest_s, longest_s)  # noqa: S311 - jitter

    def attempts(self, within_s: float | None = None) -> "Attempts":
        """For `async for`: one step per attempt, with a delay before each but the first.

        The caller leaves the loop on success. The loop ends after `attempts_max` attempts, and with
        `within_s` where the next one would begin later than that from now.
        """
        return Attempts(self, within_s)

    async def call(
        self,
        action: Callable[[], Awaitable[T]],
        *,
        on: type[Exception] | tuple[type[Exception], ...],
        never: type[Exception] | tuple[type[Exception], ...] = (),
        until: float | None = None,
    ) -> T:
        """The result of the first attempt that succeeds, or the error of the last one.

        Args:
            action: One attempt.
            on: The errors that are retried.
            never: Those among them that are not.
            until: No attempt begins after this time of the event loop's clock.
        """
        failures = 0
        while True:
            try:
                return await action()
            except never:
                raise
            except on:
                failures += 1
                delay_s = self.delay_s(failures)
                late = until is not None and asyncio.get_running_loop().time() + delay_s >= until
                if late or failures == self.attempts_max:
                    raise
            await asyncio.sleep(delay_s)


class Attempts:
    """The attempts of one retried action. Not a generator: leaving the loop leaves nothing open."""

    def __init__(self, policy: RetryPolicy, within_s: float | None) -> None:
        self._policy = policy
        self._begun = 0
        self._clock = asyncio.get_running_loop().time
        self._until = None if within_s is None else self._clock() + within_s

    def __aiter__(self) -> "Attempts":
        return self

    async def __anext__(self) -> int:
        """The number of the attempt, from 0."""
        attempt = self._begun
        if attempt == self._policy.attempts_max:
            raise StopAsyncIteration
        if attempt:
            delay_s = self._policy.delay_s(attempt)
            if self._until is not None and self._clock() + delay_s > self._until:
                raise StopAsyncIteration
            await asyncio.sleep(delay_s)
        self._begun += 1
        return attempt
