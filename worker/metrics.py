"""Metrics of the worker alone: in the API a gauge that nobody sets would show 0.

`deploy/docs/metrics.md` lists all metrics; a test compares it with these.
"""

from collections.abc import Callable
from typing import Final

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from core import telemetry

_BUILD_BUCKETS: Final = (1, 5, 15, 60, 300, 900, 3600, 10800)
BUILDS_ENDED: Final = telemetry.begun(
    Counter("k9_builds_ended_total", "Builds that ended, by how.", ["status"]),
    "published",
    "failed",
)
BUILD_SECONDS: Final = Histogram(
    "k9_build_stage_seconds",
    "Seconds a stage of a build took.",
    ["stage"],
    buckets=(0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600),
)
BUILD_TOTAL_SECONDS: Final = Histogram(
    "k9_build_seconds",
    "Seconds from the request of a build to its publication.",
    buckets=_BUILD_BUCKETS,
)
BUILD_QUEUED_SECONDS: Final = Histogram(
    "k9_build_queued_seconds",
    "Seconds from the request of a build to its first claim.",
    buckets=(0.1, 0.5, *_BUILD_BUCKETS),
)
BUILD_ATTEMPTS_RELEASED: Final = telemetry.begun(
    Counter(
        "k9_build_attempts_released_total",
        "Attempts at builds that were given up for another one: after a fault, or stopped.",
        ["cause"],
    ),
    "fault",
    "stopped",
)
BUILDS_RUNNING: Final = Gauge("k9_builds_running", "Builds that this worker runs.")
BUILD_SLOTS: Final = Gauge("k9_build_slots", "Builds that this worker may run at a time.")
BUILDS_OPEN: Final = Gauge(
    "k9_builds_open", "Builds and verifications in the table that have not ended.", ["status"]
)
OLDEST_OPEN_BUILD: Final = Gauge(
    "k9_oldest_open_build_seconds",
    "Seconds since the oldest open build was requested; 0 where none is open.",
)
OLDEST_WAITING_BUILD: Final = Gauge(
    "k9_oldest_waiting_build_seconds",
    "Seconds for which the open build that waits longest has had no worker; 0 where none waits.",
)
IMPORTS_ENDED: Final = telemetry.begun(
    Counter("k9_imports_ended_total", "Imports that ended, by how.", ["status"]),
    "completed",
    "failed",
)
IMPORT_ROWS: Final = telemetry.begun(
    Counter("k9_import_rows_total", "Rows of imports that ended, by what became of them.", ["row"]),
    "stored",
    "bad",
)
IMPORTS_RUNNING: Final = Gauge("k9_imports_running", "Imports that this worker runs.")
IMPORTS_OPEN: Final = Gauge(
    "k9_imports_open", "Imports in the table that have not ended.", ["status"]
)
QUEUE_JOBS: Final = Gauge(
    "k9_queue_jobs", "Jobs in the queue in Valkey; NaN while it does not answer."
)
DELETIONS_WAITING: Final = Gauge(
    "k9_deletions_waiting", "Users, and model versions, that are marked for deletion.", ["kind"]
)
RECONCILED_AT: Final = Gauge(
    "k9_reconciled_timestamp_seconds",
    "When this worker last read the tables for open work to the end; the start until then.",
)
RECONCILED: Final = Counter("k9_builds_reconciled_total", "Open builds that were enqueued again.")


def log_reader() -> Callable[[], dict[str, float]]:
    """Reads the age of the oldest open build, and the failed builds since it was last called."""
    reported = 0.0

    def read() -> dict[str, float]:
        nonlocal reported
        failed = REGISTRY.get_sample_value("k9_builds_ended_total", {"status": "failed"}) or 0.0
        oldest_s = REGISTRY.get_sample_value("k9_oldest_open_build_seconds") or 0.0
        since, reported = failed - reported, failed
        return {"oldest_open_build_s": round(oldest_s, 1), "builds_failed": since}

    return read
