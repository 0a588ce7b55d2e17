"""Calls to AWS as metrics and traces have them: one observation a call, one count an attempt.

Every call of K9's runs in an `AwsCall`. botocore repeats attempts by itself, so these are counted
where it receives their responses (`count_attempt`), for the call that is open there.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter
from types import TracebackType
from typing import Any, Final, Literal, Self, get_args

import msgspec

from core import telemetry, tracing

Outcome = Literal["ok", "refused", "throttled", "failed", "unreachable"]

SEVERAL: Final = "several"
"""The table of a transaction over more than one."""
OTHER: Final = "other"
"""A table that is none of the environment's."""
UNREADABLE: Final = "RequestTimeoutException"
"""The code given to a reply that does not decode or fails its checksum. botocore's `standard`
retries try again on it, as they would have on a connection cut at that point."""
_THROTTLED: Final = frozenset(
    {
        "LimitExceededException",
        "ProvisionedThroughputExceeded",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "SlowDown",
        "Throttling",
        "ThrottlingError",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
"""Codes of errors, and of the reasons of a transaction's cancellation."""
_FAILED_FROM: Final = 500
_READS: Final = frozenset({"GetItem", "BatchGetItem", "Query", "Scan"})


class Capacity(msgspec.Struct, frozen=True, gc=False):
    """What one table was charged for a call, in units."""

    TableName: str
    CapacityUnits: float = 0.0
    ReadCapacityUnits: float | None = None
    WriteCapacityUnits: float | None = None


class _Series:
    """The metrics of one operation, found once: that takes longer than to count.

    All outcomes have a series from the start, as `telemetry.begun` has it.
    """

    def __init__(self, service: str, operation: str, table: str) -> None:
        names = service, operation, table
        self.seconds = telemetry.AWS_SECONDS.labels(*names)
        outcomes: tuple[Outcome, ...] = get_args(Outcome)
        self.outcomes = {each: telemetry.AWS_ATTEMPTS.labels(*names, each) for each in outcomes}


_SERIES: Final[dict[tuple[str, str, str], _Series]] = {}
_CURRENT: Final[ContextVar["AwsCall | None"]] = ContextVar("aws_call", default=None)


class AwsCall:
    """One call, its retries included: a block that is measured, and is a span within a trace."""

    __slots__ = ("_attempts", "_began", "_operation", "_series", "_service", "_span", "_token")

    def __init__(
        self, service: str, operation: str, table: str = "", *, key: str | None = None
    ) -> None:
        """Begins with the block.

        Args:
            service: `dynamodb`, `s3`, `sts`.
            operation: As AWS names it: `GetItem`.
            table: As `core.dynamo.tables` names it; empty for other services.
            key: Of an S3 object, or its prefix, for the span.
        """
        names = service, operation, table
        series = _SERIES.get(names)
        if series is None:
            series = _SERIES[names] = _Series(*names)
        self._series = series
        self._service, self._operation = service, operation
        self._attempts = 0
        self._span = _span_of(service, operation, table, key) if tracing.active() else None

    def __enter__(self) -> Self:
        self._token = _CURRENT.set(self)
        self._began = perf_counter()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._series.seconds.observe(perf_counter() - self._began)
        _CURRENT.reset(self._token)
        if self._span is not None:
            self._span.note({"k9.aws.attempts": self._attempts})
            if error is not None:
                self._span.fail(type(error).__name__)
            self._span.end()

    def attempted(self, outcome: Outcome) -> None:
        """Counts one attempt."""
        self._attempts += 1
        self._series.outcomes[outcome].inc()

    def consumed(self, capacity: Capacity | list[Capacity], tables: Mapping[str, str]) -> None:
        """Counts the units that DynamoDB charged; `tables` has short names by the full ones."""
        charged = [capacity] if isinstance(capacity, Capacity) else capacity
        for each in charged:
            table = tables.get(each.TableName, OTHER)
            read, write = each.ReadCapacityUnits, each.WriteCapacityUnits
            if read is None and write is None:
                is_read = self._operation in _READS
                read, write = (each.CapacityUnits, 0.0) if is_read else (0.0, each.CapacityUnits)
            if read:
                telemetry.CONSUMED_UNITS.labels(table, "read").inc(read)
            if write:
                telemetry.CONSUMED_UNITS.labels(table, "write").inc(write)
        if self._span is not None:
            units = sum(each.CapacityUnits for each in charged)
            self._span.note({"k9.dynamodb.units": units})


def count_attempt(
    parsed_response: dict[str, Any] | None = None,
    exception: BaseException | None = None,
    **_more: Any,
) -> None:
    """A handler of botocore's event `response-received`: counts for the call that is open."""
    call = _CURRENT.get()
    if call is not None:
        call.attempted(_outcome(parsed_response, exception))


def count_timeout() -> None:
    """Counts an attempt that was given up at the deadline of its call: botocore says nothing."""
    call = _CURRENT.get()
    if call is not None:
        call.attempted("unreachable")


def _outcome(parsed: dict[str, Any] | None, exception: BaseException | None) -> Outcome:
    if exception is not None or parsed is None:
        return "unreachable"
    error = parsed.get("Error")
    if not error:
        return "ok"
    code = str(error.get("Code", ""))
    reasons = parsed.get("CancellationReasons") or ()
    if code in _THROTTLED or any(str(each.get("Code")) in _THROTTLED for each in reasons):
        return "throttled"
    status = int(parsed.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return "failed" if status >= _FAILED_FROM or code == UNREADABLE else "refused"


_NAMES: Final = {"dynamodb": "DynamoDB", "s3": "S3", "sts": "STS"}


def _span_of(service: str, operation: str, table: str, key: str | None) -> tracing.OpenSpan:
    """By OpenTelemetry's conventions for the AWS SDK; no values of items."""
    name = _NAMES.get(service, service)
    attributes = {"rpc.system": "aws-api", "rpc.service": name, "rpc.method": operation}
    if table:
        attributes["k9.table"] = table
    if key is not None:
        attributes["aws.s3.key"] = key
    return tracing.OpenSpan(f"{name}/{operation}", "client", attributes=attributes)


class RequestCount(msgspec.Struct):
    """Requests to S3, which bills them by number, without botocore's retries."""

    requests: int = 0


_COUNT: Final[ContextVar[RequestCount | None]] = ContextVar("request_count", default=None)


@contextmanager
def count_requests() -> Iterator[RequestCount]:
    """Counts the requests of this task in the block, and of the tasks that it starts there."""
    count = RequestCount()
    token = _COUNT.set(count)
    try:
        yield count
    finally:
        _COUNT.reset(token)


def count_request() -> None:
    """Counts one request."""
    if (count := _COUNT.get()) is not None:
        count.requests += 1
