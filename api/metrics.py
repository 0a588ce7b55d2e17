"""Metrics of the HTTP side. Labels are route templates, never ids."""

from contextlib import suppress
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

REQUESTS: Final = Counter("k9_http_requests_total", "Answers.", ["method", "route", "status"])
SECONDS: Final = Histogram(
    "k9_http_request_seconds",
    "Seconds from a request's first byte here to its answer's last.",
    ["route"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30),
)
IN_FLIGHT: Final = Gauge("k9_http_in_flight", "Requests in flight.")
SHED: Final = Counter(
    "k9_http_shed_total",
    "Requests turned away: by what they would have taken, and why.",
    ["resource", "cause"],
)
"""Causes: `share` (429), `full` and `deadline` (503), `rate` and `timeout` of bodies (400)."""
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
LOAD_FAILED: Final = Counter(
    "k9_index_load_failed_total", "Index versions that could not be put to use.", ["reason"]
)
FRESH_ROWS: Final = Gauge(
    "k9_fresh_rows",
    "Products whose vector in the index is not the present one, searched in a delta.",
    ["model_version"],
)
FRESH_BYTES: Final = Gauge("k9_fresh_bytes", "Memory of those rows.", ["model_version"])
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
            label = method if method in _METHODS else "other"
            known = REQUESTS.labels(label, route, str(status)), SECONDS.labels(route)
            if label == method:  # a caller could make up methods without end
                self._known[key] = known
        known[0].inc()
        known[1].observe(seconds)


def forget_fresh(model_version: str) -> None:
    """Takes a model version that is not followed any more out of the metrics."""
    for gauge in (FRESH_ROWS, FRESH_BYTES, FRESH_LAG, FRESH_POLLED):
        with suppress(KeyError):
            gauge.remove(model_version)
