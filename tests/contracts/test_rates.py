"""Rates of requests, counted in Valkey by any number of processes, and by each while it is away."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from core.errors import SettingsError
from core.rates import Policy, RateLimiter, Verdict, parse_policies
from tests.emulators import free_port

POLICY = Policy("group:readers", 3, 60)


@asynccontextmanager
async def limiter(
    url: str, clock: Callable[[], float] | None = None, prefix: str = ""
) -> AsyncIterator[RateLimiter]:
    """A limiter as a process has one."""
    more = {} if clock is None else {"clock": clock}
    redis = Redis.from_url(url)
    try:
        prefix = prefix or f"t-{uuid4().hex}:"
        yield RateLimiter(redis, prefix, [POLICY], timeout_s=5, **more)
    finally:
        await redis.aclose()


def test_policies_are_read_from_settings() -> None:
    """In their order, the first of which holds."""
    policies = parse_policies(
        ("caller:a-1=1/2", "group:readers=100/60", "scope:k9/read=5/1", "*=7/1")
    )
    assert [(each.right, each.quota, each.window_s) for each in policies] == [
        ("caller:a-1", 1, 2),
        ("group:readers", 100, 60),
        ("scope:k9/read", 5, 1),
        ("*", 7, 1),
    ]
    rates = RateLimiter(Redis(), "t:", policies, timeout_s=1)
    assert rates.policy_of(frozenset({"group:readers", "caller:a-1"})) == policies[0]
    assert rates.policy_of(frozenset({"scope:k9/read", "group:readers"})) == policies[1]
    assert rates.policy_of(frozenset({"caller:b"})) == policies[3]
    assert RateLimiter(Redis(), "t:", policies[:3], timeout_s=1).policy_of(frozenset()) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "readers=1/1",
        "group:=1/1",
        "group:a=0/1",
        "group:a=1/0",
        "group:a=1",
        "group:a=-1/1",
        'group:"=1/1',
        "group:a b=1/1",
        "group:a=1/86401",
        "group:a=1000001/1",
        "user:a=1/1",
    ],
)
def test_a_bad_policy_is_named(text: str) -> None:
    """With an example of a good one."""
    with pytest.raises(SettingsError, match=r"K9_RATES.*group:readers=100/60"):
        parse_policies((text,))


async def test_two_processes_count_together(valkey: str) -> None:
    """The whole quota at once, and not one more; another caller has its own."""
    prefix = f"t-{uuid4().hex}:"
    async with limiter(valkey, prefix=prefix) as one, limiter(valkey, prefix=prefix) as two:
        verdicts = [await each.take(POLICY, "a") for each in (one, two, one, two)]
        assert [each.allowed for each in verdicts] == [True, True, True, False]
        assert [each.left for each in verdicts] == [2, 1, 0, 0]
        assert verdicts[0].reset_s == 20
        assert verdicts[3].reset_s in {19, 20}
        assert (await two.take(POLICY, "b")).allowed


async def test_a_refusal_holds_until_a_request_comes_back(
    valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Valkey, which has lost its data here, is not asked before; others are not concerned."""
    now, prefix = [1000.0], f"t-{uuid4().hex}:"
    async with limiter(valkey, lambda: now[0], prefix) as rates, Redis.from_url(valkey) as redis:
        assert [(await rates.take(POLICY, "a")).allowed for _ in range(4)] == [True] * 3 + [False]
        assert await redis.delete(f"{prefix}{POLICY.right}:a") == 1
        now[0] += 9.5
        assert await rates.take(POLICY, "a") == Verdict(allowed=False, left=0, reset_s=11)
        assert (await rates.take(POLICY, "b")).allowed
        now[0] += 10.5
        assert await rates.take(POLICY, "a") == Verdict(allowed=True, left=2, reset_s=20)
        monkeypatch.setattr("core.rates._CALLERS_MAX", 4)
        for number in range(9):
            name = f"c{number}"
            taken = [(await rates.take(POLICY, name)).allowed for _ in range(4)]
            assert taken == [True] * 3 + [False]
        assert len(rates._refused_until) <= 4  # noqa: SLF001 - nobody else sees it


async def test_each_process_counts_while_valkey_is_away() -> None:
    """Without asking it again for each request; what was sent comes back with time."""
    now = [1000.0]
    async with limiter(f"redis://127.0.0.1:{free_port()}/0", lambda: now[0]) as rates:
        assert [(await rates.take(POLICY, "a")).allowed for _ in range(5)] == [True] * 3 + [
            False
        ] * 2
        assert await rates.take(POLICY, "a") == Verdict(allowed=False, left=0, reset_s=20)
        now[0] += 20
        assert await rates.take(POLICY, "a") == Verdict(allowed=True, left=0, reset_s=20)
        assert not (await rates.take(POLICY, "a")).allowed


@settings(max_examples=100, deadline=None)
@given(
    quota=st.integers(1, 20),
    window_s=st.integers(1, 100),
    pauses=st.lists(st.floats(0, 50), max_size=60),
)
def test_no_more_than_the_quota_and_what_came_back(
    quota: int, window_s: int, pauses: list[float]
) -> None:
    """Over any time, however the requests are spread; and what is left may be sent at once."""
    policy = Policy("*", quota, window_s)
    rates = RateLimiter(Redis(), "t:", [policy], timeout_s=1)
    now, sent = 0.0, []
    for pause in pauses:
        now += pause
        verdict = rates.take_here(policy, "a", now * 1e6)
        if verdict.allowed:
            sent.append(now)
            for first, began in enumerate(sent):
                back = (now - began) * quota / window_s
                assert len(sent) - first <= quota + back + 1e-3
        else:
            assert verdict.left == 0
            assert 1 <= verdict.reset_s <= window_s + 1


def test_a_process_forgets_callers_that_have_their_whole_quota(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And no other, however many there are."""
    monkeypatch.setattr("core.rates._CALLERS_MAX", 4)
    policy = Policy("*", 1, 60)
    rates = RateLimiter(Redis(), "t:", [policy], timeout_s=1)
    names = [f"caller-{number}" for number in range(50)]
    assert all(rates.take_here(policy, name, 0.0).allowed for name in names)
    assert not any(rates.take_here(policy, name, 30e6).allowed for name in names)
    assert all(rates.take_here(policy, name, 61e6).allowed for name in names)
    assert len(rates._free_at) == len(names)  # noqa: SLF001 - nobody else sees it
