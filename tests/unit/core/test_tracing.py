"""Tracing: off unless configured, harmless where its receiver is away, and never in the way."""

import os
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from core import tracing
from tests.emulators import free_port
from tests.observability.receiver import receiving

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({ENDPOINT: ""}, False),
        ({ENDPOINT: "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({ENDPOINT: "http://collector:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({ENDPOINT: "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_SERVICE_NAME": "k9"}, False),
    ],
)
def test_it_takes_a_receiver(environ: dict[str, str], *, expected: bool) -> None:
    """An address, and no variable that turns it off."""
    assert tracing.configured(environ) is expected


def test_a_process_without_traces_imports_nothing_of_them() -> None:
    """Neither the API nor the worker."""
    script = (
        "import sys, api.__main__, worker.__main__;"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_while_off_nothing_happens() -> None:
    """Spans, ids and log fields are of no effect."""
    stages = tracing.StageSpans()
    with tracing.span("a", attributes={"k": 1}) as span:
        stages.begin("b")
        span.note({"l": 2})
        span.fail("Error")
        tracing.fail("Error")
        assert (tracing.enabled(), tracing.active(), tracing.traceparent()) == (False, False, None)
        assert tracing.log_fields() == {}
    stages.close()


def test_a_trace_goes_on_from_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """A span below a caller's, one below that, and one that failed; all sent at the end."""
    with receiving() as receiver:
        monkeypatch.setenv(ENDPOINT, receiver.url)
        with tracing.open_tracing("tests", os.environ):
            with suppress(ValueError), tracing.span("outer", parent=CALLER):
                fields = tracing.log_fields()
                with tracing.span("inner", "client", root=False) as inner:
                    inner.rename("renamed")
                assert (tracing.traceparent() or "").startswith(CALLER[:36])
                raise ValueError("a secret")
            with tracing.span("no trace to belong to", root=False):
                assert not tracing.active()
    inner_span, outer = receiver.spans
    assert (outer.name, inner_span.name, inner_span.kind) == ("outer", "renamed", "client")
    assert (outer.trace_id, outer.parent_id) == (CALLER[3:35], CALLER[36:52])
    assert inner_span.parent_id == outer.span_id
    assert (outer.failed, inner_span.failed) == (True, False)
    assert outer.attributes == {"error.type": "ValueError"}
    assert fields == {"trace_id": outer.trace_id, "span_id": outer.span_id}
    assert outer.service == "tests"


@pytest.mark.parametrize("given", ["", "nonsense", "00-0-0-00", CALLER + "x" * 5000])
def test_a_caller_that_names_no_trace_gets_a_new_one(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header is from outside: nothing of it is taken where it is not as W3C has it."""
    with receiving() as receiver:
        monkeypatch.setenv(ENDPOINT, receiver.url)
        with tracing.open_tracing("tests", os.environ), tracing.span("a", parent=given):
            pass
    (span,) = receiver.spans
    assert span.parent_id == ""


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_BSP_SCHEDULE_DELAY", "0"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "nonsense"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
    ],
)
def test_what_the_sdk_refuses_is_a_warning(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process starts and works without traces, and says why, or the SDK uses its own default."""
    with receiving() as receiver:
        monkeypatch.setenv(ENDPOINT, receiver.url)
        monkeypatch.setenv(variable, value)
        with tracing.open_tracing("tests", os.environ), tracing.span("a"):
            enabled = tracing.enabled()
    assert not tracing.enabled()
    assert enabled == bool(receiver.spans)
    assert enabled != ("tracing not started" in caplog.text)


def test_a_header_that_is_not_valid_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the receiver's key, which the SDK itself would write into the log."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api key secret-of-the-receiver")
    with receiving() as receiver:
        monkeypatch.setenv(ENDPOINT, receiver.url)
        with tracing.open_tracing("tests", os.environ), tracing.span("a"):
            pass
    assert len(receiver.spans) == 1
    assert "OTEL_EXPORTER_OTLP_*HEADERS is not valid" in caplog.text
    assert "secret-of-the-receiver" not in caplog.text


def test_without_its_receiver_a_process_works_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The spans are lost, and nothing else."""
    monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with tracing.open_tracing("tests", os.environ), tracing.span("lost"):
        assert tracing.active()
    assert not tracing.enabled()
    # Its retries draw random numbers, which Hypothesis must see none of in later tests.
    for thread in threading.enumerate():
        if thread.name == "traces":
            thread.join()
