"""Which searches the gate refuses, and when."""

import asyncio
from urllib.parse import unquote

import pytest
from prometheus_client import REGISTRY

from api.server.gate import CROWD, IN_FLIGHT_MAX, STANDING_S, Gate
from core.settings import Http

SEARCH = b"/models/m-1/search"
TURN_S = STANDING_S / 8
COUNTED = {"method": "POST", "route": "/models/{model_version}/search", "status": "503"}


class Clock:
    """The loop's time, which a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.now)


def app() -> None:
    """Stands for the application."""


def begins(gate: Gate, method: str, path: bytes, caller: bytes = b"") -> bool:
    """Whether a request begins."""
    fields = [(b"host", b"k9.test"), (b"authorization", caller)]
    scope = {"method": method, "path": unquote(path.decode()), "raw_path": path, "headers": fields}
    return gate.admit(scope, app) is app


def begun(gate: Gate, count: int, caller: bytes = b"") -> int:
    """How many of so many searches of a caller begin."""
    return sum(begins(gate, "POST", SEARCH, caller) for _ in range(count))


async def turns(gate: Gate, clock: Clock, count: int, searches: int) -> int:
    """How many begin in the last of so many turns, in each of which as many come."""
    last = 0
    for _ in range(count):
        last = begun(gate, searches)
        clock.now += TURN_S
        await asyncio.sleep(0)
    return last


def made() -> Gate:
    """A gate that knows a caller by what is sent."""
    return Gate(Http(), lambda authorization: authorization.decode())


async def crowded(gate: Gate, clock: Clock) -> None:
    """Has more come than may for a while, until those that had begun before are done."""
    await turns(gate, clock, 12, CROWD)
    assert gate.standing
    for _ in range(3):
        begun(gate, 1)
        await asyncio.sleep(0)


async def test_all_that_come_for_a_moment_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many, and again after the loop had none."""
    gate, clock = made(), Clock(monkeypatch)
    for _ in range(5):
        assert await turns(gate, clock, 5, 10 * CROWD) == 10 * CROWD
        for _ in range(3):
            await asyncio.sleep(0)


async def test_a_crowd_that_stays_as_it_is_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients who each wait for an answer before they ask again, in step or not."""
    for every, count in ((1, CROWD // 3), (3, CROWD)):
        gate, clock = made(), Clock(monkeypatch)
        for turn in range(60):
            assert await turns(gate, clock, 1, 0 if turn % every else count) in {0, count}
        assert not gate.standing


async def test_what_comes_beyond_for_a_while_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each caller has a share, and another one gets in; all refusals are counted."""
    gate, clock = made(), Clock(monkeypatch)
    await crowded(gate, clock)
    before = REGISTRY.get_sample_value("k9_http_requests_total", COUNTED) or 0.0
    one, another = begun(gate, 20, b"one"), begun(gate, 20, b"another")
    assert one < IN_FLIGHT_MAX / 2 + 1
    assert another > IN_FLIGHT_MAX / 6
    assert begun(gate, 1, b"a third")
    assert gate.refuses(b"one")
    assert not gate.refuses(b"a fourth")
    await asyncio.sleep(0)
    after = REGISTRY.get_sample_value("k9_http_requests_total", COUNTED) or 0.0
    assert after - before == 40 - one - another + 1


async def test_another_caller_gets_in_when_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """At no moment does a crowd keep another caller out, however much of it is still in flight."""
    for crowd in (CROWD, 10 * CROWD):
        gate, clock = made(), Clock(monkeypatch)
        for _ in range(30):
            begun(gate, crowd, b"one")
            assert begun(gate, 1, b"another")
            clock.now += TURN_S
            await asyncio.sleep(0)
        assert gate.standing


async def test_nothing_but_searches_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """However full it is."""
    gate, clock = made(), Clock(monkeypatch)
    await crowded(gate, clock)
    begun(gate, 100)
    for method, path in (
        ("GET", b"/health/ready"),
        ("GET", b"/models/search"),
        ("GET", SEARCH),
        ("POST", b"/models/m-1/embeddings:batch"),
        ("GET", b"/models/m-1/products/p%2F1/neighbors"),
    ):
        assert all(begins(gate, method, path) for _ in range(100))


async def test_it_is_over_once_fewer_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """While some still come, and after none came at all."""
    for silence in (False, True):
        gate, clock = made(), Clock(monkeypatch)
        await crowded(gate, clock)
        if silence:
            for _ in range(3):
                await asyncio.sleep(0)
            clock.now += 2 * STANDING_S
        else:
            await turns(gate, clock, 20, 1)
        assert begun(gate, IN_FLIGHT_MAX + 1) == IN_FLIGHT_MAX + 1
