"""Traces of builds whose job was lost, whose worker died, or which fail."""

import os
from collections.abc import Iterator

import msgspec
import pytest

from core import tracing
from core.models import BuildParameters
from core.queue import BuildJob
from core.resources import Resources
from core.settings import Settings
from tests.observability.receiver import Receiver, Span, receiving
from tests.worker.test_durability import requested
from tests.worker.work import lose_redis, reconciled, store, work
from worker.background import Background
from worker.building.runner import BuildRunner


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """Where the spans of this process go; a test has them after `sent`."""
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        yield receiver


def one_trace(receiver: Receiver) -> list[Span]:
    """The spans of the trace that the test began, by their start."""
    (root,) = [span for span in receiver.spans if span.name == "the request"]
    found = [span for span in receiver.spans if span.trace_id == root.trace_id]
    ids = {span.span_id for span in found}
    assert [span for span in found if span.parent_id not in ids] == [root]
    return sorted(found, key=lambda span: span.start_ns)


async def test_a_trace_outlives_the_queue(
    resources: Resources, model_version: str, settings: Settings, receiver: Receiver
) -> None:
    """Redis loses the job: the reconciler enqueues the build again, in the trace of its request."""
    with tracing.open_tracing("tests", os.environ):
        with tracing.span("the request"):
            build_id = await requested(resources, model_version)
        await lose_redis(resources)
        await reconciled(resources)
        await work(settings)
    names = [span.name for span in one_trace(receiver)]
    assert names.count("enqueue run_build") == 2
    assert (names.count("run_build"), names.count("build")) == (1, 1)
    assert "S3/PutObject" in names
    assert (await resources.builds.get_build(build_id)).status == "published"


async def test_a_second_attempt_is_in_the_same_trace(
    resources: Resources, model_version: str, receiver: Receiver
) -> None:
    """A worker that stops releases its build; the attempt is marked, and the next one follows."""
    with tracing.open_tracing("tests", os.environ):
        with tracing.span("the request"):
            build_id = await requested(resources, model_version)
        for _ in range(2):
            runner = BuildRunner(resources, Background())
            build = await resources.builds.get_build(build_id)
            assert await runner.start(BuildJob.of(build))
            if build.fence:
                await runner.drain()
            await runner.close()
    builds = [span for span in one_trace(receiver) if span.name == "build"]
    assert [span.attributes["k9.fence"] for span in builds] == [1, 2]
    assert [span.failed for span in builds] == [True, False]


async def test_a_build_that_fails_is_marked(
    resources: Resources, model_version: str, settings: Settings, receiver: Receiver
) -> None:
    """With the kind of failure, and no text of it."""
    await store(resources, model_version, 20)
    with tracing.open_tracing("tests", os.environ):
        with tracing.span("the request"):
            asked = await resources.build_service.request(model_version, BuildParameters())
        model = await resources.models.get_model(model_version)
        gone = msgspec.structs.replace(model, generation=model.generation + 1)
        assert gone.generation != asked.generation
        await resources.dynamo.call(
            "update_item",
            TableName=settings.table("models"),
            Key={"model_version": {"S": model_version}},
            UpdateExpression="SET generation = :g",
            ExpressionAttributeValues={":g": {"N": str(gone.generation)}},
        )
        await work(settings)
    (failed,) = [span for span in one_trace(receiver) if span.name == "build"]
    assert (failed.failed, failed.attributes["error.type"]) == (True, "BuildFailed")
    assert (await resources.builds.get_build(asked.build_id)).status == "failed"
