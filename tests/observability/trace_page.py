"""`python -m tests.observability.trace_page`: deploy/docs/trace.md, from a real build."""

import asyncio
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.observability.receiver import Span
from tests.observability.traced import ROWS, Traced, run, tree

PAGE: Final = Path(__file__).parents[2] / "deploy/docs/trace.md"
_TEXT: Final = """\
# Traces

K9 records traces by OpenTelemetry where the environment names a receiver of OTLP over HTTP, and
otherwise does not import its SDK:

    OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318

The SDK's other variables hold as well: `OTEL_SERVICE_NAME` (`k9-api` and `k9-worker` by default),
`OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_HEADERS`, and
`OTEL_SDK_DISABLED=true` or `OTEL_TRACES_EXPORTER=none` to turn it off. Of the protocols K9 has HTTP
with protobuf alone (port 4318 by custom), not gRPC. Variables that the SDK refuses are a warning in
the log, and a receiver that is away costs spans and nothing else. A request goes on in the trace of
its caller's `traceparent`.

A request is a span, and so is each call to AWS within it, retries included, with its table or key
and the units that it was charged. The `traceparent` of the request that opens a build is stored in
the build's row (`trace`), beside its request id, and goes with the job: a trace lasts whether the
queue delivers the job or the reconciler finds the row. Regular polls, health checks and what a
worker does besides its builds make no traces. No span has vectors, attributes, tokens or texts of
errors.

While a span is open, log lines have its `trace_id` and `span_id`. They have `request_id` in the API
and in the worker that runs the build which the request opened, and there `build_id`. arq's lines
have the job id, which contains the build id. So one id finds the lines of all processes.

## One build

From a build of {rows} embeddings on `make dev`, written by `make trace-page`: {spans} spans. Each
line has when the span began after the request, how long it took, and the process.

```text
{tree}
```
"""


def page(traced: Traced) -> str:
    """The page."""
    return _TEXT.format(rows=ROWS, spans=len(traced.build), tree="\n".join(_lines(traced.build)))


def _lines(spans: list[Span]) -> Iterator[str]:
    began = min(span.start_ns for span in spans)
    for depth, span in tree(spans):
        after_ms = (span.start_ns - began) / 1e6
        name = f"{'  ' * depth}{span.name}{_detail(span)}"
        yield f"{after_ms:9.1f} ms {span.ms:9.1f} ms  {span.service:9}  {name}"


def _detail(span: Span) -> str:
    found = span.attributes.get("k9.table") or span.attributes.get("aws.s3.key", "")
    if "/indexes/" in found:
        found = found.rpartition("/")[2]
    return f" {found}" if found else ""


def main() -> None:
    """Runs it, and writes the page."""
    with tempfile.TemporaryDirectory(prefix="k9-trace-") as directory:
        traced = asyncio.run(run(Path(directory)))
    PAGE.write_text(page(traced), encoding="utf-8")
    sys.stdout.write(f"{PAGE}: {len(traced.build)} spans\n")


if __name__ == "__main__":
    main()
