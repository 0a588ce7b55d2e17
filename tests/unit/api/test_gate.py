"""Which searches the gate refuses, and when."""

import asyncio

import pytest
from prometheus_client import REGISTRY

from api.server.gate import IN_FLIGHT_MAX, STANDING_S, Gate
from core.settings import Http

SEARCH = b"/models/m-1/search"
NEIGHBORS = b"/models/m-1/products/p%2F1/neighbors?k=3"
TURN_S = STANDING_S / 8
COUNTED = {"method": "POST", "route": "/models/{model_version}/search", "status": "503"}


class Clock:
    """The loop's time, which a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.now)


def begun(gate: Gate, count: int, caller: bytes = b"") -> int:
    """How many of so many searches of a caller begin."""
    fields = [(b"host", b"k9.test"), (b"authorization", caller)]
    return sum(not gate.refuses(b"POST", SEARCH, fields) for _ in range(count))


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


async def test_all_that_come_for_a_moment_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many, and again after the loop had none."""
    gate, clock = made(), Clock(monkeypatch)
    for _ in range(5):
        assert await turns(gate, clock, 5, IN_FLIGHT_MAX) == IN_FLIGHT_MAX
        for _ in range(3):
            await asyncio.sleep(0)


async def test_few_in_every_turn_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """For any time: less in three turns than may be in flight."""
    few = IN_FLIGHT_MAX // 3 - 1
    assert await turns(made(), Clock(monkeypatch), 50, few) == few


async def test_what_comes_beyond_for_a_while_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each caller has a share, and another one gets in; nothing but searches is refused."""
    gate, clock = made(), Clock(monkeypatch)
    before = REGISTRY.get_sample_value("k9_http_requests_total", COUNTED) or 0.0
    await turns(gate, clock, 12, IN_FLIGHT_MAX)
    for _ in range(3):  # what had begun before is done
        begun(gate, 1)
        await asyncio.sleep(0)
    assert begun(gate, IN_FLIGHT_MAX, b"one") < IN_FLIGHT_MAX / 2 + 1
    assert begun(gate, IN_FLIGHT_MAX, b"another") > IN_FLIGHT_MAX / 6
    assert begun(gate, 1, b"a third")
    assert not gate.refuses(b"GET", b"/health/ready", [])
    assert not gate.refuses(b"GET", b"/models/search", [])
    assert not gate.refuses(b"POST", b"/models/m-1/embeddings:batch", [])
    assert not any(gate.refuses(b"GET", NEIGHBORS, []) for _ in range(IN_FLIGHT_MAX))
    await asyncio.sleep(0)
    after = REGISTRY.get_sample_value("k9_http_requests_total", COUNTED) or 0.0
    assert after > before


async def test_it_is_over_once_fewer_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """While some still come, and after none came at all."""
    for silence in (False, True):
        gate, clock = made(), Clock(monkeypatch)
        assert await turns(gate, clock, 20, IN_FLIGHT_MAX) < IN_FLIGHT_MAX
        if silence:
            for _ in range(3):
                await asyncio.sleep(0)
            clock.now += 2 * STANDING_S
        else:
            await turns(gate, clock, 20, 1)
        assert begun(gate, IN_FLIGHT_MAX) == IN_FLIGHT_MAX
