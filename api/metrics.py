"""Metrics of the HTTP side. Labels are route templates and model versions, never ids.

`deploy/docs/metrics.md` lists all metrics; a test compares it with these.
"""

import time
from contextlib import suppress
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from core import telemetry
from core.index.manifest import Manifest
from core.metrics_log import values
from core.models import parse_timestamp

REQUESTS: Final = Counter(
    "k9_http_requests_total", "Answers to requests.", ["method", "route", "status"]
)
SECONDS: Final = Histogram(
    "k9_http_request_seconds",
    "Seconds from a request's first byte here to its answer's last.",
    ["route"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
RESTARTS: Final = Counter(
    "k9_api_process_restarts_total",
    "Times that this one of several API processes on one port ended and was started again.",
)
READY: Final = Gauge("k9_ready", "1 while readiness is 200, else 0.")
DEPENDENCY_FAILING: Final = Gauge(
    "k9_dependency_failing", "1 while the last use of a dependency failed, else 0.", ["dependency"]
)
ADMISSION_IN_USE: Final = Gauge(
    "k9_admission_in_use",
    "How much of a limited resource all requests in flight hold.",
    ["resource"],
)
ADMISSION_LIMIT: Final = Gauge(
    "k9_admission_limit",
    "How much of a limited resource there is; one caller alone gets half.",
    ["resource"],
)
IN_FLIGHT: Final = Gauge("k9_http_in_flight", "Requests in flight.")
SHED: Final = Counter(
    "k9_http_shed_total",
    "Requests turned away: by what they would have taken, and why.",
    ["resource", "cause"],
)
"""Resources are those of `Admission`, and `searches`, which the gate of the server refuses. Causes:
`share` and `rate` of requests (429), `full`, `deadline` (503), and `rate` of bodies (400)."""
CONNECTIONS: Final = Gauge("k9_http_connections", "Open connections.")
CONNECTIONS_ENDED: Final = Counter(
    "k9_http_connections_ended_total",
    "Connections that were refused or ended, and requests over an address's share, by cause.",
    ["cause"],
)
CONNECTIONS_MALFORMED: Final = Counter(
    "k9_http_malformed_total", "Connections on which something came that is not HTTP/1.1."
)
SWAPS: Final = Counter("k9_index_swaps_total", "Index versions put to use.", ["model_version"])
SWAP_SECONDS: Final = Histogram(
    "k9_index_swap_seconds",
    "Seconds of putting an index version to use, by phase: fetch its files or verify the cached "
    "ones, open them, activate it once what changed since is known.",
    ["phase"],
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300),
)
INDEX_BUILT: Final = Gauge(
    "k9_index_built_timestamp_seconds",
    "When the version in use was built; its age is `time()` less this.",
    ["model_version"],
)
INDEX_RECALL: Final = Gauge(
    "k9_index_recall", "Recall of the version in use, as its build measured it.", ["model_version"]
)
INDEX_TARGET: Final = Gauge(
    "k9_index_target_recall",
    "Recall that the build of the version in use was to reach.",
    ["model_version"],
)
LOADED_ROWS: Final = Gauge("k9_loaded_rows", "Rows of the version in use.", ["model_version"])
INDEX_BYTES: Final = Gauge(
    "k9_index_loaded_bytes",
    "Bytes of the files in memory of the version in use.",
    ["model_version"],
)
LOAD_FAILED: Final = telemetry.begun(
    Counter(
        "k9_index_load_failed_total", "Index versions that could not be put to use.", ["reason"]
    ),
    "Corrupt",
    "NotFound",
    "Unavailable",
)
FRESH_ROWS: Final = Gauge(
    "k9_fresh_rows",
    "Products whose vector in the index is not the present one, searched in a delta.",
    ["model_version"],
)
FRESH_BYTES: Final = Gauge(
    "k9_fresh_bytes", "Memory of the rows that a delta has.", ["model_version"]
)
FRESH_LAG: Final = Gauge(
    "k9_fresh_lag_seconds",
    "From the oldest notification of the last round of changed rows to their use.",
    ["model_version"],
)
FRESH_POLLED: Final = Gauge(
    "k9_fresh_polled_timestamp_seconds",
    "When the last complete poll of the shards began.",
    ["model_version"],
)
NOTIFICATIONS_BEGUN: Final = Counter(
    "k9_hints_begun_total",
    "Times that listening for change notifications began: once, and after each break.",
)

_OF_MODELS: Final = (
    LOADED_ROWS,
    INDEX_BYTES,
    INDEX_BUILT,
    INDEX_RECALL,
    INDEX_TARGET,
    SWAPS,
    FRESH_ROWS,
    FRESH_BYTES,
    FRESH_LAG,
    FRESH_POLLED,
)

UNMATCHED: Final = "unmatched"
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Meter:
    """Counts answers; keeps the children of the metrics, since finding one costs more than it."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def record(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts one answer."""
        key = method, route, status
        known = self._known.get(key)
        if known is None:
            label = method_label(method)
            known = REQUESTS.labels(label, route, str(status)), SECONDS.labels(route)
            if label == method:  # a caller could make up methods without end
                self._known[key] = known
        known[0].inc()
        known[1].observe(seconds)


def method_label(method: str) -> str:
    """A method as metrics name it: a caller could make up others without end."""
    return method if method in _METHODS else "other"


def show_index(manifest: Manifest, rows: int, resident_bytes: int) -> None:
    """Shows the version that a model version is answered from."""
    name = manifest.model_version
    LOADED_ROWS.labels(name).set(rows)
    INDEX_BYTES.labels(name).set(resident_bytes)
    INDEX_BUILT.labels(name).set(parse_timestamp(manifest.built_at).timestamp())
    INDEX_RECALL.labels(name).set(manifest.recall.value)
    INDEX_TARGET.labels(name).set(manifest.parameters.target_recall)


def logged() -> dict[str, float]:
    """What the API logs of its metrics: how old the oldest index is that rows have changed since.

    An index without a changed row is as good as a new one, however old it is.
    """
    fresh = values(FRESH_ROWS)
    built = [at for name, at in values(INDEX_BUILT).items() if fresh.get(name)]
    return {"index_age_s": round(time.time() - min(built), 1) if built else 0.0}


def forget(model_version: str) -> None:
    """Takes a model version that is not followed any more out of the metrics."""
    for metric in _OF_MODELS:
        with suppress(KeyError):
            metric.remove(model_version)
