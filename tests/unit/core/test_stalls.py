"""A blocked event loop shows in the metrics and in the log."""

import asyncio
import gc
import threading
import time

import pytest
import structlog
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from core import stalls
from core.stalls import LoopProbe, freeze_memory, watched_loop

EVERY_S = 0.02
STALL_S = 0.2
SEEN_S = STALL_S - EVERY_S
"""At the least: the stall may have begun so long before the probe was due."""


@pytest.fixture(autouse=True)
def _logs(monkeypatch: pytest.MonkeyPatch) -> None:
    # A logger that another test has made final would not be captured.
    monkeypatch.setattr(stalls, "_log", structlog.get_logger("stalls"))


def sample(name: str, **labels: str) -> float:
    """A metric, as a scraper reads it now."""
    value = REGISTRY.get_sample_value(name, labels)
    assert value is not None
    return value


def longest() -> float:
    """The gauge."""
    return sample("k9_event_loop_delay_longest_seconds")


def over_a_tenth() -> float:
    """How many delays were over 0.1 s."""
    name = "k9_event_loop_delay_seconds"
    return sample(f"{name}_count") - sample(f"{name}_bucket", le="0.1")


def block(seconds: float = STALL_S) -> None:
    """What must not be done on an event loop."""
    time.sleep(seconds)


async def settle() -> None:
    """Lets the probe run a few times."""
    await asyncio.sleep(4 * EVERY_S)


async def test_a_stall_shows_in_the_metrics_and_the_log() -> None:
    """Its length in the gauge, one more in the histogram, one line that says how long it was."""
    before = over_a_tenth()
    with capture_logs() as lines, watched_loop(EVERY_S, limit_s=0.1):
        await settle()
        block()
        await settle()
        assert longest() >= SEEN_S
        assert over_a_tenth() >= before + 1
    (line,) = [line for line in lines if line["event"] == "event loop stalled"]
    assert line["log_level"] == "warning"
    assert line["longest_s"] >= SEEN_S - 0.001
    assert line["busy_s"] < line["longest_s"]  # it slept, and did no work
    assert line["stalls"] == 1


async def test_a_loop_that_is_not_blocked_is_not_complained_of() -> None:
    """A delay under the limit is in the metrics alone."""
    with capture_logs() as lines, watched_loop(EVERY_S, limit_s=60):
        await settle()
        block()
        await settle()
        assert longest() >= SEEN_S
    assert lines == []


async def test_a_stall_shows_while_it_lasts() -> None:
    """A scrape in the middle of it finds it: the metrics are answered by another thread."""
    found: list[float] = []

    def scrape() -> None:
        time.sleep(STALL_S / 2)
        found.append(longest())

    with watched_loop(EVERY_S, limit_s=60):
        await settle()
        scraper = threading.Thread(target=scrape)
        scraper.start()
        block()
        scraper.join()
    assert found[0] >= STALL_S / 2 - EVERY_S
    assert longest() == 0


async def test_many_stalls_are_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is told at once, the others together, with their number and the longest."""
    monkeypatch.setattr(stalls, "_LOG_EVERY_S", 1.0)
    probe = LoopProbe(EVERY_S, limit_s=0.03)
    with capture_logs() as lines:
        probe.start()
        for seconds in (0.08, 0.08, STALL_S, 0.08):
            await settle()
            block(seconds)
        async with asyncio.timeout(10):
            while sum(line["stalls"] for line in lines) < 4:
                await settle()
        probe.stop()
    assert lines[0]["stalls"] == 1
    assert len(lines) < 4
    assert max(line["longest_s"] for line in lines) >= SEEN_S - 0.001


async def test_the_longest_delay_of_two_windows_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shorter delay does not hide a longer one of the window before; an older one is gone."""
    monkeypatch.setattr(stalls, "WINDOW_S", STALL_S)
    probe = LoopProbe(EVERY_S, limit_s=60)
    probe.start()
    await settle()
    block(2 * STALL_S)
    await settle()
    assert probe.longest_s() >= 2 * STALL_S - EVERY_S
    async with asyncio.timeout(20):
        while probe.longest_s() >= 2 * STALL_S - EVERY_S:
            await settle()
    probe.stop()


def test_collections_begin_again_once_a_process_has_started() -> None:
    """Imports turn them off; garbage of requests must not pile up."""
    gc.disable()
    try:
        freeze_memory()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
        gc.enable()
