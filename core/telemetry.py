"""Logs and metrics: structured lines on standard error, Prometheus counters in the process.

No log line shows a local variable: the frames of a request have keys, tokens and bodies. No line is
longer than `LINE_CHARACTERS_MAX`.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, Final

import structlog
from prometheus_client import Counter, Gauge, Histogram, start_http_server
from structlog.typing import EventDict, ExceptionRenderer, WrappedLogger

from core import tracing

LINE_CHARACTERS_MAX: Final = 16 * 1024
"""Of one log line, without its line end."""
_TEXT_CHARACTERS_MAX: Final = 2000
_FRAMES_MAX: Final = 24
_QUIET = ("aiobotocore", "botocore", "urllib3", "asyncio")
_LEADING: Final = (
    "event",
    "level",
    "logger",
    "timestamp",
    "request_id",
    "build_id",
    "trace_id",
    "span_id",
)
"""The fields that stay of a line that is too long."""
REQUEST_ID: Final[ContextVar[bytes | None]] = ContextVar("request_id", default=None)
"""Of the request that is being answered, or that requested the build which is being worked on: it
stands in every log line meanwhile. Not among structlog's own variables, since setting one of those
takes ten times as long."""


def _plain(renderer: ExceptionRenderer = structlog.dev.plain_traceback) -> Any:
    """Lines for people; structlog's own default shows locals where rich is installed."""
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=renderer)


def _joined(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Adds the ids by which lines of several processes are found together."""
    request_id = REQUEST_ID.get()
    if request_id is not None:
        event.setdefault("request_id", request_id.decode())
    for name, value in tracing.log_fields().items():
        event.setdefault(name, value)
    return event


# Of a process that configures nothing else, such as a command that logs nothing as a rule.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        _joined,
        structlog.processors.add_log_level,
        structlog.processors.StackInfoRenderer(),
        structlog.dev.set_exc_info,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _plain(),
    ]
)


def configure_logging(*, level: str, json: bool) -> None:
    """Sends every log line, the libraries' too, through one format to standard error."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _joined,
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
    frames = structlog.tracebacks.ExceptionDictTransformer(
        show_locals=False, max_frames=_FRAMES_MAX
    )
    tail: list[structlog.typing.Processor] = (
        [structlog.processors.ExceptionRenderer(frames), _rendered_json] if json else [_plain()]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _without_arguments, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tail, _cut],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


_render_json = structlog.processors.JSONRenderer()


def _rendered_json(logger: WrappedLogger, method: str, event: EventDict) -> str:
    """One line of JSON; values that are too long are cut, so that it stays valid JSON."""
    line = str(_render_json(logger, method, event))
    if len(line) <= LINE_CHARACTERS_MAX:
        return line
    line = str(_render_json(logger, method, _shortened(event)))
    if len(line) <= LINE_CHARACTERS_MAX:
        return line
    left: EventDict = {name: _shortened(event[name]) for name in _LEADING if name in event}
    exceptions = event.get("exception")
    if isinstance(exceptions, list):
        left["exception"] = [str(found.get("exc_type")) for found in exceptions[:_FRAMES_MAX]]
    left["shortened"] = True
    return str(_render_json(logger, method, left))


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= _TEXT_CHARACTERS_MAX else f"{value[:_TEXT_CHARACTERS_MAX]}…"
    if isinstance(value, dict):
        return {name: _shortened(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_shortened(entry) for entry in value]
    if isinstance(value, int | float | None):
        return value
    return _shortened(repr(value))


def _cut(_logger: WrappedLogger, _method: str, line: Any) -> str:
    """The last limit, on the rendered line."""
    text = str(line)
    return text if len(text) <= LINE_CHARACTERS_MAX else f"{text[: LINE_CHARACTERS_MAX - 1]}…"


def _without_arguments(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Drops the arguments of a failed callback: asyncio logs all of them, bodies too."""
    if event.get("logger") == "asyncio":
        event["event"] = str(event["event"]).partition("\n")[0].partition("(")[0]
    return event


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """A structured logger: `log.info("what happened", build_id=…)`."""
    bound: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return bound


@contextmanager
def metrics_server(host: str, port: int) -> Iterator[None]:
    """Serves `/metrics` on a port of its own until the end of the block; none where it is 0.

    A port in use is a warning: work does not depend on metrics.
    """
    with ExitStack() as stack:
        try:
            if port:
                server, thread = start_http_server(port, host)
                for end in (thread.join, server.server_close, server.shutdown):  # the last first
                    stack.callback(end)
        except OSError as error:
            logger(__name__).warning("metrics port not opened", port=port, error=str(error))
        yield


def request_id() -> str | None:
    """The id of the request that is being answered here; None outside of one."""
    found = REQUEST_ID.get()
    return None if found is None else found.decode()


def join_logs(request_id: str | None, **ids: str) -> None:
    """Puts ids into all further log lines of this task, and of the tasks that it starts."""
    REQUEST_ID.set(None if request_id is None else request_id.encode())
    structlog.contextvars.bind_contextvars(**ids)


def begun(counter: Counter, *values: str) -> Counter:
    """A counter of one label, with a series of each value from the start.

    Prometheus' `increase` does not see the first event of a series that begins with it.
    """
    for value in values:
        counter.labels(value)
    return counter


AWS_SECONDS = Histogram(
    "k9_aws_call_seconds",
    "Seconds of a call to AWS, its retries included.",
    ["service", "operation", "table"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
)
AWS_ATTEMPTS = Counter(
    "k9_aws_attempts_total",
    "Requests to AWS, each retry apart: ok, refused (4xx), throttled, failed (5xx or unreadable), "
    "or unreachable (no answer in time).",
    ["service", "operation", "table", "outcome"],
)
CONSUMED_UNITS = Counter(
    "k9_dynamodb_consumed_units_total",
    "Capacity units that DynamoDB charged, indexes included; not those of refused writes, of which "
    "it does not tell.",
    ["table", "kind"],
)
UNPROCESSED_ITEMS = Counter(
    "k9_dynamodb_unprocessed_items_total",
    "Items that DynamoDB left out of a batch call that it took; they are sent again.",
    ["table"],
)
BUILDS_UNREADABLE = Counter(
    "k9_build_rows_unreadable_total",
    "Rows of the builds table that could not be read, and were skipped.",
)
ROWS_WRITTEN = Counter("k9_embeddings_written_total", "Embeddings stored, tombstones included.")
ROWS_UNPROCESSED = Counter(
    "k9_embeddings_unprocessed_total", "Embeddings DynamoDB did not take within the deadline."
)
VERSIONS_REFUSED = begun(
    Counter("k9_versions_refused_total", "Index versions refused, by where.", ["reason"]),
    "cache",
    "s3",
)
ENQUEUE_FAILED = Counter(
    "k9_enqueue_failed_total", "Jobs that Redis did not take; the reconciler enqueues them again."
)
NOTIFICATIONS_LOST = begun(
    Counter(
        "k9_hints_lost_total",
        "Changed rows whose notification was lost; a poll finds them.",
        ["why"],
    ),
    "no room",
    "not sent",
    "not understood",
)
LOOP_DELAY = Histogram(
    "k9_event_loop_delay_seconds",
    "How late the event loop came to a callback that was due.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
LOOP_DELAY_LONGEST = Gauge(
    "k9_event_loop_delay_longest_seconds",
    "The longest delay of the event loop in the last 15 to 30 seconds.",
)
