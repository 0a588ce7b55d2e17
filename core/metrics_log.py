"""Metrics in the log: a line a minute, of which CloudWatch makes the metrics that nothing else has.

The filters, the alarms and the scaling that read these lines are in `deploy/cloudformation`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

from prometheus_client import Gauge

from core import telemetry

EVENT: Final = "metrics"
"""What such a line has as its event."""

_log = telemetry.logger(__name__)


@asynccontextmanager
async def logged_metrics(
    every_s: float, read: Callable[[], Mapping[str, float]]
) -> AsyncIterator[None]:
    """Logs what `read` returns, at once and every `every_s` until the block ends; 0: never."""
    if not every_s:
        yield
        return
    logging = asyncio.create_task(_log_forever(every_s, read))
    try:
        yield
    finally:
        logging.cancel()
        await asyncio.gather(logging, return_exceptions=True)


async def _log_forever(every_s: float, read: Callable[[], Mapping[str, float]]) -> None:
    while True:
        try:
            _log.info(EVENT, **read())
        except Exception:  # noqa: BLE001 - a bug in a reading must not end the task for good
            _log.exception("metrics not logged")
        await asyncio.sleep(every_s)


def values(gauge: Gauge) -> dict[str, float]:
    """The values of a gauge with one label, by that label."""
    (family,) = gauge.collect()
    return {value: sample.value for sample in family.samples for value in sample.labels.values()}
