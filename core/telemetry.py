"""Logs and metrics: structured lines on standard error, Prometheus counters in the process."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from prometheus_client import Counter, Gauge, Histogram, start_http_server

_QUIET = ("aiobotocore", "botocore", "urllib3", "asyncio")


def configure_logging(*, level: str, json: bool) -> None:
    """Sends every log line, the libraries' too, through one format to standard error."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    tail: list[structlog.typing.Processor] = (
        [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
        if json
        else [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tail],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """A structured logger: `log.info("what happened", build_id=…)`."""
    bound: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return bound


@contextmanager
def metrics_server(host: str, port: int) -> Iterator[None]:
    """Serves `/metrics` on a port of its own until the end of the block; none where it is 0.

    A port that is taken is a warning: metrics are not worth refusing work for.
    """
    if port == 0:
        yield
        return
    try:
        server, thread = start_http_server(port, host)
    except OSError as error:
        logger(__name__).warning("no metrics", port=port, error=str(error))
        yield
        return
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


BUILDS_ENDED = Counter("k9_builds_ended_total", "Builds that ended, by how.", ["status"])
BUILD_SECONDS = Histogram(
    "k9_build_stage_seconds",
    "Seconds a stage of a build took.",
    ["stage"],
    buckets=(0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600),
)
BUILDS_UNREADABLE = Counter(
    "k9_build_rows_unreadable_total", "Rows of the builds table passed over as unreadable."
)
ROWS_WRITTEN = Counter("k9_embeddings_written_total", "Embeddings stored, tombstones included.")
ROWS_UNPROCESSED = Counter(
    "k9_embeddings_unprocessed_total", "Embeddings DynamoDB did not take within the deadline."
)
VERSIONS_REFUSED = Counter(
    "k9_versions_refused_total", "Index versions refused, by reason.", ["reason"]
)
ENQUEUE_FAILED = Counter(
    "k9_enqueue_failed_total", "Hints to the queue that were lost; the reconciler makes them good."
)
HINTS_LOST = Counter(
    "k9_hints_lost_total", "Ids of changed rows whose hint was lost; a poll finds them.", ["why"]
)
RECONCILED = Counter("k9_builds_reconciled_total", "Open builds that were enqueued again.")
LOADED_ROWS = Gauge("k9_loaded_rows", "Rows of the version in memory.", ["model_version"])
LOOP_DELAY = Histogram(
    "k9_event_loop_delay_seconds",
    "How late the event loop came to a callback that was due.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
LOOP_DELAY_LONGEST = Gauge(
    "k9_event_loop_delay_longest_seconds", "The longest such delay of the last 15 seconds."
)
