"""Retries: how long they wait, when they end, and what they raise."""

import asyncio

import pytest

from core.errors import Busy, TableMissing, Unavailable
from core.retry import RetryPolicy

QUICK = RetryPolicy(first_s=0.001, max_s=0.004, attempts_max=3)


class Action:
    """Fails with the given errors, one a call, then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> str:
        """One attempt."""
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def test_delays_double_up_to_the_cap() -> None:
    """Without jitter each delay is twice the one before; very many failures do not overflow."""
    policy = RetryPolicy(first_s=0.1, max_s=5.0, jitter=0.0)
    delays = [policy.delay_s(failures) for failures in (1, 2, 3, 7, 10_000)]
    assert delays == pytest.approx([0.1, 0.2, 0.4, 5.0, 5.0])


@pytest.mark.parametrize(("jitter", "least"), [(1.0, 0.0), (0.5, 0.1)])
def test_jitter_spreads_delays(jitter: float, least: float) -> None:
    """Delays lie between the share that is not random and the whole."""
    policy = RetryPolicy(first_s=0.2, max_s=0.2, jitter=jitter)
    delays = [policy.delay_s(1) for _ in range(200)]
    assert least <= min(delays) < least + 0.05
    assert 0.15 < max(delays) <= 0.2


async def test_a_call_is_retried_until_it_succeeds() -> None:
    """Two failures, then the result."""
    action = Action(Busy("1"), Busy("2"))
    assert await QUICK.call(action, on=Busy) == "done"
    assert action.calls == 3


async def test_the_last_error_is_raised() -> None:
    """The number of attempts is held to."""
    action = Action(Busy("1"), Busy("2"), Busy("3"), Busy("4"))
    with pytest.raises(Busy, match="3"):
        await QUICK.call(action, on=Busy)
    assert action.calls == 3


async def test_other_errors_pass_at_once() -> None:
    """What is not to be retried, be it a kind of what is, is raised by the first attempt."""
    for error in (ValueError("a mistake"), TableMissing("gone")):
        action = Action(error)
        with pytest.raises(type(error)):
            await QUICK.call(action, on=Unavailable, never=TableMissing)
        assert action.calls == 1


async def test_no_attempt_begins_after_the_deadline() -> None:
    """With the deadline past, the first error is raised without a delay."""
    action = Action(Busy("1"))
    policy = RetryPolicy(first_s=60, max_s=60, jitter=0.0)
    with pytest.raises(Busy):
        await policy.call(action, on=Busy, until=asyncio.get_running_loop().time() + 30)
    assert action.calls == 1


async def test_attempts_are_counted_and_end() -> None:
    """`attempts` numbers them from 0, and ends after the last."""
    assert [attempt async for attempt in QUICK.attempts()] == [0, 1, 2]


async def test_attempts_end_with_their_time() -> None:
    """No attempt begins later than the time that all of them have; the first one always does."""
    patient = RetryPolicy(first_s=60.0, max_s=60.0, jitter=0.0)
    assert [attempt async for attempt in patient.attempts(within_s=0.0)] == [0]
    quick = RetryPolicy(first_s=0.001, max_s=0.001, attempts_max=3, jitter=0.0)
    assert [attempt async for attempt in quick.attempts(within_s=60.0)] == [0, 1, 2]
