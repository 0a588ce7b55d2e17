"""One trace of one build: from its request, through the table and the queue, to its last file."""

import asyncio
import json
from collections.abc import Iterator

import pytest

from tests.observability.receiver import Span
from tests.observability.traced import REQUEST_ID, Traced, run, tree

pytestmark = pytest.mark.timeout(300)

_STAGES = ["pull", "validate", "index", "matrix", "files", "upload", "publish"]
"""Of a first build that is exact: no other has `recall` or `compare`."""


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    """A build on a stack of its own."""
    return asyncio.run(run(tmp_path_factory.mktemp("traced")))


def named(traced: Traced, name: str) -> Span:
    """The only span of the build's trace that has this name."""
    (found,) = [span for span in traced.build if span.name == name]
    return found


def below(traced: Traced, parent: Span) -> list[Span]:
    """Its children, by their start."""
    found = [span for span in traced.build if span.parent_id == parent.span_id]
    return sorted(found, key=lambda span: span.start_ns)


def test_the_trace_is_one_tree_over_both_processes(traced: Traced) -> None:
    """Every span but the request's has its parent in it, and nothing failed."""
    assert len(list(tree(traced.build))) == len(traced.build)
    assert {span.service for span in traced.build} == {"k9-api", "k9-worker"}
    root = next(span for _, span in tree(traced.build))
    assert (root.service, root.kind) == ("k9-api", "server")
    assert root.name == "POST /models/{model_version}/builds"
    assert root.attributes["http.response.status_code"] == 202
    assert [span for span in traced.build if span.failed] == []


def test_the_request_opens_and_enqueues_the_build(traced: Traced) -> None:
    """One transaction in DynamoDB, then a job; the worker's part hangs below the request."""
    children = below(traced, next(span for _, span in tree(traced.build)))
    names = [span.name for span in children]
    assert names.index("DynamoDB/TransactWriteItems") < names.index("enqueue run_build")
    assert named(traced, "enqueue run_build").kind == "producer"
    claim = named(traced, "run_build")
    assert (claim.kind, claim.service) == ("consumer", "k9-worker")
    assert claim in children
    (update,) = [span for span in below(traced, claim) if span.kind == "client"]
    assert (update.name, update.attributes["k9.table"]) == ("DynamoDB/UpdateItem", "builds")


def test_each_stage_has_what_it_calls(traced: Traced) -> None:
    """The pull reads the rows, the upload puts every file and the manifest last."""
    build = named(traced, "build")
    assert build.attributes["k9.build_id"] == traced.build_id
    stages = [span.name for span in below(traced, build) if "/" not in span.name]
    assert stages == _STAGES
    reads = [span for span in below(traced, named(traced, "pull")) if "Query" in span.name]
    assert {span.attributes["k9.table"] for span in reads} == {"embeddings"}
    assert all(span.attributes["k9.dynamodb.units"] > 0 for span in reads)
    puts = [span for span in traced.build if span.name == "S3/PutObject"]
    assert puts == below(traced, named(traced, "upload"))
    keys = [span.attributes["aws.s3.key"] for span in sorted(puts, key=lambda each: each.end_ns)]
    assert len(keys) > 5
    assert keys[-1].endswith(f"/{traced.build_id}/1/manifest.json")
    publish = below(traced, named(traced, "publish"))
    writes = [span for span in publish if span.name == "DynamoDB/TransactWriteItems"]
    assert [span.attributes["k9.table"] for span in writes] == ["several"]


def test_regular_polls_make_no_traces(traced: Traced) -> None:
    """Only requests, and the builds that K9 requests by itself, begin one."""
    roots = {span.name for span in traced.spans if not span.parent_id}
    assert "POST /models/{model_version}/embeddings:batch" in roots
    assert not [name for name in roots if name.startswith(("DynamoDB/", "S3/", "GET /health"))]


def lines(text: str) -> Iterator[dict[str, str]]:
    """The log lines of a process."""
    return (json.loads(line) for line in text.splitlines() if line.startswith("{"))


def test_log_lines_of_api_and_worker_have_the_same_ids(traced: Traced) -> None:
    """By the request's id, the build's, or the trace's, one finds all of them."""
    root = next(span for _, span in tree(traced.build))
    ids = {"request_id": REQUEST_ID, "build_id": traced.build_id, "trace_id": root.trace_id}
    for name, event in (("api", "build requested"), ("worker", "build published")):
        (line,) = [line for line in lines(traced.logs[name]) if line["event"] == event]
        assert {key: line[key] for key in ids} == ids
    queue = [line for line in lines(traced.logs["worker"]) if line["logger"] == "arq.worker"]
    assert any(traced.build_id in line["event"] for line in queue)
