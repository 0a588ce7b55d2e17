"""Takes away what K9 needs, and does what the runbook says: `python -m tests.drills.alerts`.

Each fault is made on a running stack. The figure that the alert's expression reads must show it,
so must the command that the runbook names, and what the runbook says to do must end it. Alerts on
load, builds and deletions are those of `tests.drills.alerts_of_work`.
"""

import os
import shutil
import signal
from pathlib import Path
from time import perf_counter

import numpy as np

from core.dynamo.expressions import key as row_key
from deploy.api_client import Api, ProblemError, path_of
from deploy.aws.clients import open_client
from deploy.local.sample import PRODUCT
from tests.drills.figures import API, WORKER, has, lacks, operator_api, read_figures, until
from tests.drills.stack import MODEL, DrillFailed, Stack, run, running_stack, say
from tests.e2e.dev import run_in


async def drill() -> None:
    """Each fault in turn; the stack is well at the end."""
    async with running_stack() as stack, operator_api(stack) as api:
        await stack.neighbors(PRODUCT)
        await _worker_gone(stack)
        await _valkey_hangs(stack, api)
        await _rows_change(stack, api)
        await _build_fails(stack)
        await _dynamodb_hangs(stack, api)
        await _starts_without_anything(stack)
        await _files_damaged(stack)
        await stack.k9("doctor", "--calls", "0")


async def _doctor_names(stack: Stack, words: str) -> None:
    status, out, _ = await run_in(stack.dev.directory, "doctor", "--calls", "0")
    if status != 1 or words not in out:
        raise DrillFailed(f"k9 doctor does not say {words!r}: {out}")
    say(f"k9 doctor: {words.strip()}")


async def _worker_gone(stack: Stack) -> None:
    os.kill(stack.dev.parts()["worker"].pid, signal.SIGKILL)
    await until(stack, "K9TargetDown", WORKER, lambda figures: figures is None)
    await until(stack, "K9TargetDown ends, started again", WORKER, bool)


async def _valkey_hangs(stack: Stack, api: Api) -> None:
    before = await read_figures(stack, API) or {}
    valkey = stack.dev.parts()["valkey"].pid
    os.kill(valkey, signal.SIGSTOP)
    failing = "k9_dependency_failing{dependency=redis}"
    await until(stack, "K9DependencyFailing of redis", API, has(failing))
    vector = np.random.default_rng(1).normal(size=384).tolist()
    path = path_of("models", MODEL, "embeddings", "of-the-drill")
    await api.call("PUT", path, body={"vector": vector})
    lost = before.get("k9_hints_lost_total", 0.0) + 1
    await until(stack, "K9NotificationsLost", API, has("k9_hints_lost_total", lost))
    await api.call("POST", path_of("models", MODEL, "builds"), body={"force": True})
    failed = before.get("k9_enqueue_failed_total", 0.0) + 1
    await until(stack, "K9QueueUnavailable", API, has("k9_enqueue_failed_total", failed))
    await _doctor_names(stack, "failed   redis")
    await stack.k9("build", MODEL, "--force")  # joins it: the worker finds it in the table
    os.kill(valkey, signal.SIGCONT)
    await until(stack, "K9DependencyFailing of redis ends", API, lacks(failing))


async def _rows_change(stack: Stack, api: Api) -> None:
    rng = np.random.default_rng(2)
    rows = [
        {"product_id": f"drill-{n}", "vector": rng.normal(size=384).tolist()} for n in range(200)
    ]
    await api.call("POST", f"/models/{MODEL}/embeddings:batch", body={"embeddings": rows})
    fresh = "k9_fresh_rows"
    await until(stack, "K9IndexOld, K9TooManyFreshRows: rows changed", API, has(fresh, 200))
    await stack.k9("build", MODEL)
    await until(
        stack,
        "the same ends, built",
        API,
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
    before = (await read_figures(stack, WORKER) or {}).get(
        "k9_builds_ended_total{status=failed}", 0.0
    )
    status, _, error = await run_in(stack.dev.directory, "build", "drill")
    if status == 0:
        raise DrillFailed("a build of no valid row was published")
    say(f"k9 build: {error.strip()}")
    failed = has("k9_builds_ended_total{status=failed}", before + 1)
    await until(stack, "K9BuildsFailing", WORKER, failed)
    await resources.embedding_service.store_embedding("drill", "a", np.ones(4, np.float32))
    await stack.k9("build", "drill")


async def _dynamodb_hangs(stack: Stack, api: Api) -> None:
    aws = stack.dev.parts()["aws"].pid
    before = {**(await read_figures(stack, WORKER) or {}), **(await read_figures(stack, API) or {})}
    began = perf_counter()
    os.kill(aws, signal.SIGSTOP)
    await until(
        stack,
        "K9DependencyFailing of dynamodb",
        API,
        has("k9_dependency_failing{dependency=dynamodb}"),
    )
    try:
        await api.call("POST", "/reports", body={"title": "While DynamoDB hangs"})
    except ProblemError as error:
        say(f"a write: {error}")
    await until(stack, "K9HttpErrors", API, has("k9_http_requests_total{status=503}"))
    unreachable = "k9_aws_attempts_total{outcome=unreachable}"
    await until(stack, "K9AwsErrors", API, has(unreachable))
    await _doctor_names(stack, "failed   dynamodb")
    for alert, port, name in (
        ("K9WorkerNotReconciling", WORKER, "k9_reconciled_timestamp_seconds"),
        ("K9ChangesNotRead", API, "k9_fresh_polled_timestamp_seconds"),
    ):
        now = await read_figures(stack, port) or {}
        advanced, passed = now[name] - before[name], perf_counter() - began
        if advanced > passed / 2:
            raise DrillFailed(f"{alert}: the process goes on without DynamoDB")
        say(f"{alert}: {advanced:.0f} s of {passed:.0f} s")
    await api.call("POST", path_of("models", MODEL, "search"), body={"product_id": PRODUCT})
    say("a search is answered from memory")
    os.kill(aws, signal.SIGCONT)
    await until(
        stack,
        "K9DependencyFailing of dynamodb ends",
        API,
        lacks("k9_dependency_failing{dependency=dynamodb}"),
    )


async def _starts_without_anything(stack: Stack) -> None:
    """A new API process without a cache, while DynamoDB hangs."""
    aws = stack.dev.parts()["aws"].pid
    os.kill(aws, signal.SIGSTOP)
    os.kill(stack.dev.parts()["api"].pid, signal.SIGKILL)
    _empty(stack.dev.directory / ".k9" / "cache")
    await until(stack, "K9NotReady", API, lambda f: f is not None and f.get("k9_ready", 1.0) == 0)
    os.kill(aws, signal.SIGCONT)
    await until(stack, "K9NotReady ends", API, has("k9_ready"))


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
    await until(stack, "K9VersionRefused", API, has("k9_versions_refused_total"))
    await until(stack, "K9IndexNotLoaded", API, has("k9_index_load_failed_total"))
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
