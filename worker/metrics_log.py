"""What a worker logs of its metrics."""

from collections.abc import Callable

from core.metrics_log import value
from worker import metrics


def reader() -> Callable[[], dict[str, float]]:
    """Reads the age of the oldest open build, and the failed builds since it was last called."""
    reported = 0.0

    def read() -> dict[str, float]:
        nonlocal reported
        failed = metrics.BUILDS_ENDED.labels("failed")
        (family,) = failed.collect()
        total = next(s.value for s in family.samples if s.name.endswith("_total"))
        since, reported = total - reported, total
        return {
            "oldest_open_build_s": round(value(metrics.OLDEST_OPEN_BUILD), 1),
            "builds_failed": since,
        }

    return read
