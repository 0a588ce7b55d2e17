"""How many requests a caller may send in a time, over all processes of an environment.

Counted by the generic cell rate algorithm (ITU-T I.371): of each caller one number is kept, the
time at which nothing that it sent counts any more. A caller may send its whole quota at once, and
then as much as comes back with time. Valkey keeps the numbers and the clock; while it is away,
each process counts by itself.
"""

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from core import names, telemetry
from core.errors import SettingsError
from core.settings import Settings
from core.valkey import open_valkey

ANYONE: Final = "*"
"""The right that every caller has."""
_POLICY: Final = re.compile(
    r"(?P<right>\*|(?:caller|group|scope):[!#-+\--<>-\[\]-~]+)=(?P<quota>[0-9]+)/(?P<window>[0-9]+)"
)
_QUOTA_MAX: Final = 1_000_000
_WINDOW_S_MAX: Final = 86_400
_SECOND_US: Final = 1_000_000
_AWAY_S: Final = 1.0
"""How long Valkey is not asked after it did not answer."""
_CALLERS_MAX: Final = 10_000
"""Callers that a process counts itself before it forgets those that have their whole quota."""
_FAILURES: Final = (RedisError, OSError, TimeoutError)
_SCRIPT: Final = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local interval, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local free_at = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now)
local allowed = 0
if free_at + interval - now <= window + 1 then
  allowed = 1
  free_at = free_at + interval
  local kept_ms = math.ceil((free_at - now) / 1000)
  redis.call('SET', KEYS[1], string.format('%.0f', free_at), 'PX', kept_ms)
end
return {allowed, math.floor(free_at - now)}
"""

_log = telemetry.logger(__name__)


class Policy(msgspec.Struct, frozen=True):
    """What each caller with a right may send."""

    right: str
    """`caller:` and the `sub`, `group:` or `scope:` and its name, or `*`."""
    quota: int
    """Requests."""
    window_s: int

    @property
    def interval_us(self) -> float:
        """The time in which one request comes back."""
        return self.window_s * _SECOND_US / self.quota


class Verdict(msgspec.Struct, frozen=True):
    """Whether a request is within the rate."""

    allowed: bool
    left: int
    """Requests that may be sent at once after it."""
    reset_s: int
    """Until one may be sent again, where none is left; else until the quota is whole again."""


def parse_policies(texts: Sequence[str]) -> tuple[Policy, ...]:
    """The policies of `K9_RATES`: `group:readers=100/60` is 100 requests in 60 seconds.

    Raises:
        SettingsError: one is not valid.
    """
    policies = []
    for text in texts:
        match = _POLICY.fullmatch(text)
        quota, window_s = (int(match["quota"]), int(match["window"])) if match else (0, 0)
        if match is None or not 0 < quota <= _QUOTA_MAX or not 0 < window_s <= _WINDOW_S_MAX:
            raise SettingsError(
                f"K9_RATES: {text!r} is not like group:readers=100/60: a right (caller:SUB, "
                f"group:NAME, scope:NAME or *), requests up to {_QUOTA_MAX}, seconds up to "
                f"{_WINDOW_S_MAX}"
            )
        policies.append(Policy(match["right"], quota, window_s))
    return tuple(policies)


class RateLimiter:
    """Counts the requests of callers."""

    def __init__(
        self,
        redis: Redis,
        prefix: str,
        policies: Sequence[Policy],
        *,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes the client, what its keys begin with, and the policies, the first of which holds.

        Args:
            redis: Of the environment.
            prefix: Of keys.
            policies: A caller has the first one of whose right it has.
            timeout_s: How long Valkey may take to answer.
            clock: Seconds, for a process that counts by itself.
        """
        self._script: Any = redis.register_script(_SCRIPT)
        self._prefix = prefix
        self._policies = policies
        self._timeout_s = timeout_s
        self._clock = clock
        self._away_until = -math.inf
        self._free_at: dict[str, float] = {}
        """By caller, in microseconds of the clock."""
        self._sweep_at = _CALLERS_MAX
        """How many callers are counted when those with their whole quota are forgotten."""
        self._refused_until: dict[str, float] = {}
        """By caller over its rate: until when, in microseconds, none of its requests is allowed."""

    def policy_of(self, rights: frozenset[str]) -> Policy | None:
        """What a caller with these rights may send; None where it has no limit."""
        for policy in self._policies:
            if policy.right == ANYONE or policy.right in rights:
                return policy
        return None

    async def take(self, policy: Policy, user_id: str) -> Verdict:
        """Counts one request of a caller, unless it is over the rate."""
        now = self._clock()
        key = f"{policy.right}:{user_id}"
        if (refused := self._still_refused(key, now * _SECOND_US)) is not None:
            return refused
        if now >= self._away_until:
            try:
                async with asyncio.timeout(self._timeout_s):
                    allowed, spent_us = await self._script(
                        keys=[f"{self._prefix}{key}"],
                        args=[policy.interval_us, policy.window_s * _SECOND_US],
                    )
            except _FAILURES as error:
                _log.warning("rates are counted by each process", error=type(error).__name__)
                self._away_until = self._clock() + _AWAY_S
            else:
                verdict = _verdict(policy, spent_us, allowed=bool(allowed))
                if not allowed:
                    self._remember(key, now * _SECOND_US, _wait_us(policy, spent_us))
                return verdict
        return self.take_here(policy, user_id, now * _SECOND_US)

    def _still_refused(self, key: str, now: float) -> Verdict | None:
        """The refusal of a caller that may send nothing yet, by what Valkey said last.

        It holds for all processes: only time brings requests back. So a flood costs Valkey no more
        than one call for each request that is allowed, and one refusal, in each process.
        """
        until = self._refused_until.get(key)
        if until is None:
            return None
        if now < until:
            return Verdict(allowed=False, left=0, reset_s=_whole_seconds(until - now))
        del self._refused_until[key]
        return None

    def _remember(self, key: str, now: float, wait_us: float) -> None:
        """Notes that a caller is refused for so long; `now` is of before Valkey was asked."""
        if len(self._refused_until) >= _CALLERS_MAX:
            later = {each: at for each, at in self._refused_until.items() if at > now}
            self._refused_until = later if len(later) < _CALLERS_MAX else {}
        self._refused_until[key] = now + wait_us

    def take_here(self, policy: Policy, user_id: str, now: float) -> Verdict:
        """The same by this process alone; `now` is in microseconds."""
        if len(self._free_at) >= self._sweep_at:
            self._free_at = {key: at for key, at in self._free_at.items() if at > now}
            # Where most are still counted, not all are looked at again with each request.
            self._sweep_at = max(_CALLERS_MAX, 2 * len(self._free_at))
        key = f"{policy.right}:{user_id}"
        free_at = max(self._free_at.get(key, 0.0), now)
        allowed = free_at + policy.interval_us - now <= policy.window_s * _SECOND_US + 1
        if allowed:
            self._free_at[key] = free_at = free_at + policy.interval_us
        return _verdict(policy, free_at - now, allowed=allowed)


def _verdict(policy: Policy, spent_us: float, *, allowed: bool) -> Verdict:
    window_us = policy.window_s * _SECOND_US
    left = max(0, math.floor((window_us + 1 - spent_us) / policy.interval_us)) if allowed else 0
    return Verdict(allowed, left, _whole_seconds(spent_us if left else _wait_us(policy, spent_us)))


def _wait_us(policy: Policy, spent_us: float) -> float:
    """Until another request is allowed, where none is left."""
    return spent_us + policy.interval_us - policy.window_s * _SECOND_US


def _whole_seconds(microseconds: float) -> int:
    return max(1, math.ceil(microseconds / _SECOND_US))


@asynccontextmanager
async def open_rates(settings: Settings) -> AsyncIterator[RateLimiter | None]:
    """The limiter of the environment; None where no rates are set.

    Raises:
        SettingsError: the rates are not valid.
    """
    policies = parse_policies(settings.http.rates)
    if not policies:
        yield None
        return
    prefix = names.rate_prefix(settings.environment)
    async with open_valkey(settings) as redis:
        yield RateLimiter(redis, prefix, policies, timeout_s=settings.hint_timeout_s)
