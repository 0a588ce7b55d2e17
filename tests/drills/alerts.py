"""Causes what alerts are about, and does what the runbook says: `python -m tests.drills.alerts`.

Each fault is made on a running stack. The figure that the alert's expression reads must show it,
so must the command that the runbook names, and what the runbook says to do must end it.
"""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter

import aiohttp
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from core.dynamo.expressions import key as row_key
from deploy.api_client import Api, ProblemError, open_api, path_of
from deploy.aws.clients import open_client
from deploy.local.files import OPERATOR
from deploy.local.sample import PRODUCT
from tests.drills.stack import MODEL, DrillFailed, Stack, run, running_stack, say
from tests.e2e.dev import run_in

_SEEN_S = 90.0
_API, _WORKER = "K9_METRICS_PORT", "K9_WORKER_METRICS_PORT"

Figures = dict[str, float]
"""Sums of a process's samples, by name and `name{label=value}` for each label."""


async def drill() -> None:
    """Each fault in turn; the stack is well at the end."""
    async with running_stack() as stack, _api(stack) as api:
        await stack.neighbors(PRODUCT)
        await _worker_gone(stack)
        await _valkey_hangs(stack, api)
        await _rows_change(stack, api)
        await _build_fails(stack)
        await _dynamodb_hangs(stack, api)
        await _starts_without_anything(stack)
        await _files_damaged(stack)
        await stack.k9("doctor", "--calls", "0")


@asynccontextmanager
async def _api(stack: Stack) -> AsyncIterator[Api]:
    token = await stack.running.fetch_token(stack.settings, OPERATOR, operator=True)
    async with open_api(stack.running.environ["K9_URL"], token) as api:
        yield api


async def _figures(stack: Stack, port: str) -> Figures | None:
    """What a process exports now; None if it does not answer."""
    url = f"http://127.0.0.1:{stack.running.environ[port]}/metrics"
    timeout = aiohttp.ClientTimeout(total=5)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as reply:
            text = await reply.text()
    except (aiohttp.ClientError, TimeoutError, OSError):
        return None
    figures: Figures = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            names = [sample.name, *(f"{sample.name}{{{k}={v}}}" for k, v in sample.labels.items())]
            for name in names:
                figures[name] = figures.get(name, 0.0) + sample.value
    return figures


async def _until(
    stack: Stack, alert: str, port: str, seen: Callable[[Figures | None], bool]
) -> None:
    """Waits until a process's figures are such, and prints how long it took.

    Raises:
        DrillFailed: they are not in time.
    """
    began = perf_counter()
    while not seen(await _figures(stack, port)):
        if perf_counter() - began > _SEEN_S:
            raise DrillFailed(f"{alert}: not seen in {_SEEN_S:g} s")
        await asyncio.sleep(0.2)
    say(f"{alert}: after {perf_counter() - began:.1f} s")


def _has(name: str, least: float = 1.0) -> Callable[[Figures | None], bool]:
    return lambda figures: figures is not None and figures.get(name, 0.0) >= least


def _lacks(name: str) -> Callable[[Figures | None], bool]:
    return lambda figures: figures is not None and figures.get(name, 0.0) == 0


async def _doctor_names(stack: Stack, words: str) -> None:
    status, out, _ = await run_in(stack.dev.directory, "doctor", "--calls", "0")
    if status != 1 or words not in out:
        raise DrillFailed(f"k9 doctor does not say {words!r}: {out}")
    say(f"k9 doctor: {words.strip()}")


async def _worker_gone(stack: Stack) -> None:
    os.kill(stack.dev.parts()["worker"].pid, signal.SIGKILL)
    await _until(stack, "K9TargetDown", _WORKER, lambda figures: figures is None)
    await _until(stack, "K9TargetDown ends, started again", _WORKER, bool)


async def _valkey_hangs(stack: Stack, api: Api) -> None:
    before = await _figures(stack, _API) or {}
    valkey = stack.dev.parts()["valkey"].pid
    os.kill(valkey, signal.SIGSTOP)
    failing = "k9_dependency_failing{dependency=redis}"
    await _until(stack, "K9DependencyFailing of redis", _API, _has(failing))
    vector = np.random.default_rng(1).normal(size=384).tolist()
    path = path_of("models", MODEL, "embeddings", "of-the-drill")
    await api.call("PUT", path, body={"vector": vector})
    lost = before.get("k9_hints_lost_total", 0.0) + 1
    await _until(stack, "K9NotificationsLost", _API, _has("k9_hints_lost_total", lost))
    await api.call("POST", path_of("models", MODEL, "builds"), body={"force": True})
    failed = before.get("k9_enqueue_failed_total", 0.0) + 1
    await _until(stack, "K9QueueUnavailable", _API, _has("k9_enqueue_failed_total", failed))
    await _doctor_names(stack, "failed   redis")
    await stack.k9("build", MODEL, "--force")  # joins it: the worker finds it in the table
    os.kill(valkey, signal.SIGCONT)
    await _until(stack, "K9DependencyFailing of redis ends", _API, _lacks(failing))


async def _rows_change(stack: Stack, api: Api) -> None:
    rng = np.random.default_rng(2)
    rows = [
        {"product_id": f"drill-{n}", "vector": rng.normal(size=384).tolist()} for n in range(200)
    ]
    await api.call("POST", f"/models/{MODEL}/embeddings:batch", body={"embeddings": rows})
    fresh = "k9_fresh_rows"
    await _until(stack, "K9IndexOld, K9TooManyFreshRows: rows changed", _API, _has(fresh, 200))
    await stack.k9("build", MODEL)
    await _until(
        stack,
        "the same ends, built",
        _API,
        lambda figures: figures is not None and figures.get(fresh, 0.0) < 200,
    )


async def _build_fails(stack: Stack) -> None:
    resources = stack.resources
    await resources.embedding_service.store_embedding("drill", "a", np.ones(4, np.float32))
    name = stack.settings.table("embeddings")
    nan = np.full(4, np.nan, np.float32).tobytes()
    await resources.dynamo.call(
        "update_item",
        TableName=name,
        Key=row_key(product_id="a", model_version="drill"),
        UpdateExpression="SET #v = :v",
        ExpressionAttributeNames={"#v": "embedding_vector"},
        ExpressionAttributeValues={":v": {"B": nan}},
    )
    before = (await _figures(stack, _WORKER) or {}).get("k9_builds_ended_total{status=failed}", 0.0)
    status, _, error = await run_in(stack.dev.directory, "build", "drill")
    if status == 0:
        raise DrillFailed("a build of no valid row was published")
    say(f"k9 build: {error.strip()}")
    failed = _has("k9_builds_ended_total{status=failed}", before + 1)
    await _until(stack, "K9BuildsFailing", _WORKER, failed)
    await resources.embedding_service.store_embedding("drill", "a", np.ones(4, np.float32))
    await stack.k9("build", "drill")


async def _dynamodb_hangs(stack: Stack, api: Api) -> None:
    aws = stack.dev.parts()["aws"].pid
    before, began = await _figures(stack, _WORKER) or {}, perf_counter()
    os.kill(aws, signal.SIGSTOP)
    await _until(
        stack,
        "K9DependencyFailing of dynamodb",
        _API,
        _has("k9_dependency_failing{dependency=dynamodb}"),
    )
    try:
        await api.call("POST", "/reports", body={"title": "While DynamoDB hangs"})
    except ProblemError as error:
        say(f"a write: {error}")
    await _until(stack, "K9HttpErrors", _API, _has("k9_http_requests_total{status=503}"))
    unreachable = "k9_aws_attempts_total{outcome=unreachable}"
    await _until(stack, "K9AwsErrors", _API, _has(unreachable))
    await _doctor_names(stack, "failed   dynamodb")
    reconciled = "k9_reconciled_timestamp_seconds"
    now = await _figures(stack, _WORKER) or {}
    advanced, passed = now[reconciled] - before[reconciled], perf_counter() - began
    if advanced > passed / 2:
        raise DrillFailed("K9WorkerNotReconciling: the worker goes on without DynamoDB")
    say(f"K9WorkerNotReconciling: {advanced:.0f} s of {passed:.0f} s")
    await api.call("POST", path_of("models", MODEL, "search"), body={"product_id": PRODUCT})
    say("a search is answered from memory")
    os.kill(aws, signal.SIGCONT)
    await _until(
        stack,
        "K9DependencyFailing of dynamodb ends",
        _API,
        _lacks("k9_dependency_failing{dependency=dynamodb}"),
    )


async def _starts_without_anything(stack: Stack) -> None:
    """A new API process without a cache, while DynamoDB hangs."""
    aws = stack.dev.parts()["aws"].pid
    os.kill(aws, signal.SIGSTOP)
    os.kill(stack.dev.parts()["api"].pid, signal.SIGKILL)
    _empty(stack.dev.directory / ".k9" / "cache")
    await _until(stack, "K9NotReady", _API, lambda f: f is not None and f.get("k9_ready", 1.0) == 0)
    os.kill(aws, signal.SIGCONT)
    await _until(stack, "K9NotReady ends", _API, _has("k9_ready"))


def _empty(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()


async def _files_damaged(stack: Stack) -> None:
    answer = await stack.neighbors(PRODUCT)
    build = answer["index"]["build_id"]
    home = stack.dev.directory / ".k9"
    key = await _damage(stack, build)
    say(f"one bit of {key} flipped")
    os.kill(stack.dev.parts()["api"].pid, signal.SIGKILL)
    _empty(home / "cache")
    await _until(stack, "K9VersionRefused", _API, _has("k9_versions_refused_total"))
    log = (home / "logs/api.log").read_text(encoding="utf-8")
    refused = [line for line in log.splitlines() if "index version refused" in line]
    if not refused or MODEL not in refused[0]:
        raise DrillFailed("the log does not name the version that was refused")
    say(f"the log: {refused[0][:160]}")
    await stack.k9("rebuild", MODEL)
    await stack.neighbors(PRODUCT)
    say("rebuilt: searches are answered again")
    await stack.k9("verify-build", MODEL)


async def _damage(stack: Stack, build: str) -> str:
    """Flips a bit of a build's vectors in S3; the key."""
    bucket = stack.settings.aws.bucket
    async with open_client("s3", stack.settings) as client:
        listed = await client.list_objects_v2(Bucket=bucket)
        keys = [str(each["Key"]) for each in listed["Contents"]]
        key = next(k for k in keys if build in k and k.endswith("/vectors.npy"))
        reply = await client.get_object(Bucket=bucket, Key=key)
        data = bytearray(await reply["Body"].read())
        data[len(data) // 2] ^= 1
        await client.put_object(
            Bucket=bucket, Key=key, Body=bytes(data), Metadata=reply["Metadata"]
        )
    return key


if __name__ == "__main__":
    run(drill)
