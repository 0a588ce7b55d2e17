"""Spans of requests, by OpenTelemetry's conventions for HTTP; made only while tracing is on."""

from typing import Final

from litestar.types import HTTPScope

from api import metrics
from core import tracing

_FAILED_FROM: Final = 500
_TRACEPARENT: Final = b"traceparent"
_OPERATIONS: Final = "/health/"
"""Asked every few seconds: such requests make no traces."""


def request_span(scope: HTTPScope, request_id: bytes) -> tracing.OpenSpan | None:
    """Begins the span of a request, in its caller's trace if it names one.

    No header or query is in it: those may have tokens and vectors.
    """
    if scope["path"].startswith(_OPERATIONS):
        return None
    given = next((value for name, value in scope["headers"] if name == _TRACEPARENT), None)
    return tracing.OpenSpan(
        metrics.method_label(scope["method"]),
        "server",
        parent=None if given is None else given.decode("latin-1"),
        attributes={
            "http.request.method": metrics.method_label(scope["method"]),
            "k9.request_id": request_id.decode(),
        },
    )


def end_span(span: tracing.OpenSpan, method: str, route: str, status: int) -> None:
    """Ends it with what the answer was; only a 5xx is the server's failure."""
    span.rename(f"{metrics.method_label(method)} {route}")
    span.note({"http.route": route, "http.response.status_code": status})
    if status >= _FAILED_FROM:
        span.fail(str(status))
    span.end()
