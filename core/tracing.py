"""Traces by OpenTelemetry: off, and its SDK not imported, unless `OTEL_*` names a receiver.

A trace goes from a request through the builds table to the worker: the table, and not the queue,
is what no failure loses. Spans of calls to AWS are made only within another span, so that the
regular polls of a process make no traces.
"""

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal

from core import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Attributes = Mapping[str, str | int | float | bool]

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_OFF: Final = "none"
_FLUSH_S: Final = 3.0
"""A process that stops waits no longer than this for its last spans to be taken."""

_log: Final = logging.getLogger(__name__)
"""Not by `core.telemetry`, which asks this module for the ids of spans."""
_tracer: "Tracer | None" = None


def _without_header(record: logging.LogRecord) -> bool:
    """Rewrites the SDK's warning of a header that is not valid: it shows the header, a secret."""
    record.msg, record.args = "a header in OTEL_EXPORTER_OTLP_*HEADERS is not valid: name=value", ()
    return True


def configured(environ: Mapping[str, str]) -> bool:
    """Whether the environment names a receiver of traces, and does not turn them off."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() == _OFF:
        return False
    return any(environ.get(name) for name in _ENDPOINTS)


@contextmanager
def open_tracing(service: str, environ: Mapping[str, str]) -> Iterator[None]:
    """Records spans until the end of the block, where `configured`, and then sends the last ones.

    Sampling, limits, headers and addresses are those of the SDK's own variables. `service` is the
    `service.name`, unless OTEL_SERVICE_NAME gives another. Variables that the SDK refuses are a
    warning: work does not depend on traces.
    """
    global _tracer  # noqa: PLW0603 - one a process, as its metrics are
    provider = None
    if configured(environ):
        try:
            provider = _provider(environ.get("OTEL_SERVICE_NAME") or service)
        except Exception as error:  # noqa: BLE001 - the SDK says nowhere what it may raise
            _log.warning("tracing not started: %s: %s", type(error).__name__, error)
    if provider is None:
        yield
        return
    _tracer = provider.get_tracer("k9", __version__)
    try:
        yield
    finally:
        _tracer = None
        # A receiver that does not answer must not hold up a process that was told to stop.
        closing = threading.Thread(target=provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(_FLUSH_S)


def _provider(service: str) -> "TracerProvider":
    # Imported here: some 120 modules, which a process without traces need not have.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    logging.getLogger("opentelemetry.util.re").addFilter(_without_header)
    resource = Resource.create({"service.name": service, "service.version": __version__})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def enabled() -> bool:
    """Whether spans are recorded in this process."""
    return _tracer is not None


def active() -> bool:
    """Whether a span that is recorded is open here, so that a further one belongs to it."""
    if _tracer is None:
        return False
    from opentelemetry import trace  # noqa: PLC0415

    return trace.get_current_span().is_recording()


def traceparent() -> str | None:
    """The open span, as the header `traceparent` of W3C's Trace Context; None without one."""
    if _tracer is None:
        return None
    from opentelemetry.trace.propagation import tracecontext  # noqa: PLC0415

    carrier: dict[str, str] = {}
    tracecontext.TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


def fail(error: str) -> None:
    """Marks the open span as failed, where the error itself does not leave it."""
    if _tracer is not None:
        from opentelemetry import trace  # noqa: PLC0415

        _mark(trace.get_current_span(), error)


def log_fields() -> dict[str, str]:
    """Ids of the open span, in hex, for log lines; nothing without one."""
    if _tracer is None:
        return {}
    from opentelemetry import trace  # noqa: PLC0415

    found = trace.get_current_span().get_span_context()
    if not found.is_valid:
        return {}
    return {"trace_id": f"{found.trace_id:032x}", "span_id": f"{found.span_id:016x}"}


class OpenSpan:
    """A span that is the parent of what is called until its end. Of no effect while tracing is off.

    Begin and end it in the same task.
    """

    __slots__ = ("_span", "_token")

    def __init__(
        self,
        name: str,
        kind: Kind = "internal",
        *,
        parent: str | None = None,
        attributes: Attributes | None = None,
        root: bool = True,
    ) -> None:
        """Begins it, below the span that is open here, or below a `traceparent` of elsewhere.

        Where there is neither, it begins a trace, or unless `root` has no effect.
        """
        self._span: Span | None = None
        self._token: Any = None
        if _tracer is None or not (root or parent or active()):
            return
        from opentelemetry import context, trace  # noqa: PLC0415
        from opentelemetry.trace.propagation import tracecontext  # noqa: PLC0415

        above = None
        if parent is not None:
            carrier = {"traceparent": parent}
            above = tracecontext.TraceContextTextMapPropagator().extract(carrier)
        self._span = _tracer.start_span(
            name, above, trace.SpanKind[kind.upper()], attributes=attributes
        )
        self._token = context.attach(trace.set_span_in_context(self._span))

    def rename(self, name: str) -> None:
        """Gives it another name, where that is known late."""
        if self._span is not None:
            self._span.update_name(name)

    def note(self, attributes: Attributes) -> None:
        """Adds attributes."""
        if self._span is not None:
            self._span.set_attributes(attributes)

    def fail(self, error: str) -> None:
        """Marks it as failed, with the kind of error and no text of it: that may name a secret."""
        if self._span is not None:
            _mark(self._span, error)

    def end(self) -> None:
        """Ends it, once."""
        if self._span is not None:
            from opentelemetry import context  # noqa: PLC0415

            context.detach(self._token)
            self._span.end()
            self._span = None


@contextmanager
def span(
    name: str,
    kind: Kind = "internal",
    *,
    parent: str | None = None,
    attributes: Attributes | None = None,
    root: bool = True,
) -> Iterator[OpenSpan]:
    """A span for the length of the block, which an error that leaves it marks as failed.

    The arguments are those of `OpenSpan`.
    """
    opened = OpenSpan(name, kind, parent=parent, attributes=attributes, root=root)
    try:
        yield opened
    except BaseException as error:
        opened.fail(type(error).__name__)
        raise
    finally:
        opened.end()


def _mark(opened: "Span", error: str) -> None:
    from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415

    opened.set_attribute("error.type", error)
    opened.set_status(Status(StatusCode.ERROR))


class StageSpans:
    """One span after the other, each open until the next begins."""

    def __init__(self) -> None:
        self._open: OpenSpan | None = None

    def begin(self, name: str) -> None:
        """Ends the stage before, and begins another."""
        self.close()
        if _tracer is not None:
            self._open = OpenSpan(name)

    def close(self) -> None:
        """Ends the last one."""
        if self._open is not None:
            self._open.end()
            self._open = None
