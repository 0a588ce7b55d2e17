"""The lines that CloudWatch makes metrics of."""

import asyncio
import re
import time
from typing import Any

import structlog

from api import metrics
from core import metrics_log
from core.metrics_log import logged_metrics
from tests.templates import read_template
from worker import metrics as worker_metrics
from worker.metrics import log_reader


async def test_lines_come_again_and_again() -> None:
    """Each with what was read at that time; an error in a reading ends nothing."""
    often = asyncio.Event()
    readings = 0

    def numbers() -> dict[str, float]:
        nonlocal readings
        readings += 1
        if readings == 1:
            raise ValueError("the first reading fails")
        if readings > 3:
            often.set()
        return {"number": readings}

    with structlog.testing.capture_logs() as lines:
        async with logged_metrics(0.001, numbers), asyncio.timeout(10):
            await often.wait()
    assert [line["event"] for line in lines[:3]] == ["metrics not logged", "metrics", "metrics"]
    assert [line.get("number") for line in lines[1:3]] == [2, 3]


async def test_zero_logs_nothing() -> None:
    """It is off unless it is set."""
    with structlog.testing.capture_logs() as lines:
        async with logged_metrics(0, lambda: {"number": 1.0}):
            await asyncio.sleep(0.01)
    assert lines == []


def test_failed_builds_are_counted_once() -> None:
    """A line has those since the line before."""
    read = log_reader()
    read()
    worker_metrics.BUILDS_ENDED.labels("failed").inc(2)
    worker_metrics.OLDEST_OPEN_BUILD.set(12.34)
    try:
        assert read() == {"oldest_open_build_s": 12.3, "builds_failed": 2.0}
        assert read()["builds_failed"] == 0.0
    finally:
        worker_metrics.OLDEST_OPEN_BUILD.set(0)


def test_an_unchanged_index_has_no_age() -> None:
    """Only an index that rows have changed since is to be built again."""
    names = ("metrics-log-old", "metrics-log-changed")
    metrics.INDEX_BUILT.clear()  # of tests before it in this process
    metrics.FRESH_ROWS.clear()
    try:
        for name, built in zip(names, (1.0, 1000.0), strict=True):
            metrics.INDEX_BUILT.labels(name).set(built)
        metrics.FRESH_ROWS.labels(names[0]).set(0)
        assert metrics.logged()["index_age_s"] == 0
        metrics.FRESH_ROWS.labels(names[1]).set(3)
        assert 0 < metrics.logged()["index_age_s"] < time.time() - 900
    finally:
        for name in names:
            metrics.forget(name)


def test_the_filters_read_what_is_logged() -> None:
    """The template's filters name the event and fields of these lines, and their log groups."""
    filters: dict[str, dict[str, Any]] = {
        name: resource["Properties"]
        for name, resource in read_template("service")["Resources"].items()
        if resource["Type"] == "AWS::Logs::MetricFilter"
    }
    logged = {"WorkerLogs": log_reader()(), "ApiLogs": metrics.logged()}
    fields = set()
    for properties in filters.values():
        (field,) = re.findall(
            rf'\$\.event = "{metrics_log.EVENT}" && \$\.(\w+) = \*', properties["FilterPattern"]
        )
        assert properties["MetricTransformations"][0]["MetricValue"] == f"$.{field}"
        assert field in logged[properties["LogGroupName"]["Ref"]]
        fields.add(field)
    assert fields == {field for each in logged.values() for field in each}
