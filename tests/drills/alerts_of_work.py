"""Causes what alerts on load, builds and deletions are about.

    python -m tests.drills.alerts_of_work

Each is made on a running stack: the figure that the alert's expression reads must show it, and what
the runbook says to do, or K9 by itself, must end it.
"""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from time import perf_counter
from typing import Any

import numpy as np

from core.dynamo import tables
from core.dynamo.expressions import key as row_key
from deploy.api_client import Api, ProblemError, open_api, path_of
from tests.drills.figures import API, WORKER, Figures, has, lacks, operator_api, read_figures, until
from tests.drills.stack import MODEL, DrillFailed, Stack, run, running_stack, say
from tests.worker.processes import children_of

_CALLERS, _HEAVY, _WRITES, _VECTORS = 40, 24, 26, 64
_STOPPED_S = 2.5
_WAIT_S = 90.0
_SEARCH = "route=/models/{model_version}/search"


async def drill() -> None:
    """Each in turn; the stack is well at the end."""
    async with running_stack() as stack, operator_api(stack) as api:
        await _stalled(stack)
        await _dynamodb_slow(stack, api)
        await _too_many_requests(stack)
        await _attempts_killed(stack)
        await _builds_wait(stack, api)
        await _row_of_a_newer_release(stack)
        await _deletion_waits(stack, api)
        await stack.k9("doctor", "--calls", "0")


async def _figures(stack: Stack, port: str) -> Figures:
    figures = await read_figures(stack, port)
    if figures is None:
        raise DrillFailed("the process exports nothing")
    return figures


@asynccontextmanager
async def _stopped(pid: int) -> AsyncIterator[None]:
    """A process that does nothing meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def _stalled(stack: Stack) -> None:
    async with _stopped(stack.dev.parts()["api"].pid):
        await asyncio.sleep(_STOPPED_S)
    longest = "k9_event_loop_delay_longest_seconds"
    await until(stack, "K9EventLoopStalled", API, has(longest))
    await until(stack, "the same ends", API, lambda f: f is not None and f[longest] < 1)


async def _dynamodb_slow(stack: Stack, api: Api) -> None:
    """The emulator stops while a call is under way, for less than the call's timeout."""

    def slow(figures: Figures) -> float:
        name = "k9_aws_call_seconds"
        fast = figures.get(f"{name}_bucket{{le=0.5}}", 0.0)
        return figures[f"{name}_count"] - fast

    before = slow(await _figures(stack, API))
    async with _stopped(stack.dev.parts()["aws"].pid):
        body = {"title": "While DynamoDB is slow"}
        call = asyncio.create_task(api.call("POST", "/reports", body=body))
        await asyncio.sleep(_STOPPED_S / 4)
    try:
        await call
    except ProblemError as error:
        say(f"a write: {error}")
    await until(stack, "K9AwsSlow", API, lambda f: f is not None and slow(f) > before)
    await stack.k9("doctor", "--calls", "20")


async def _too_many_requests(stack: Stack) -> None:
    """Many callers write while DynamoDB does not answer, and then send large exact searches."""
    url = stack.running.environ["K9_URL"]
    vectors = np.random.default_rng(1).normal(size=(_VECTORS, 384)).round(4).tolist()
    search = {"vectors": vectors, "k": 100, "exact": True}

    async with AsyncExitStack() as opened:
        callers = []
        for number in range(_CALLERS):
            user = f"caller-{number}"
            token = await stack.running.fetch_token(stack.settings, user, operator=False)
            callers.append(await opened.enter_async_context(open_api(url, token)))
        async with _stopped(stack.dev.parts()["aws"].pid):
            # Each may have as much as is left, so that it takes others to have the rest.
            report = {"title": "One of many"}
            held = asyncio.create_task(_each(callers[:_HEAVY], _WRITES, "/reports", report))
            await until(stack, "many wait", API, has("k9_http_in_flight", _HEAVY * _WRITES * 0.7))
            await _each(callers[_HEAVY:], _WRITES // 2, "/reports", report)
            await held
        await until(stack, "K9RequestsShed", API, has("k9_http_shed_total{cause=full}"))
        await _each(callers, 2, path_of("models", MODEL, "search"), search)

    def slow(figures: Figures | None) -> bool:
        name = "k9_http_request_seconds"
        if figures is None:
            return False
        fast = figures.get(f"{name}_bucket{{le=0.25,{_SEARCH}}}", 0.0)
        return figures.get(f"{name}_count{{{_SEARCH}}}", 0.0) > fast

    await until(stack, "K9SearchSlow", API, slow)
    await until(stack, "both end: none in flight", API, lacks("k9_http_in_flight"))


async def _each(callers: Sequence[Api], count: int, path: str, body: Any) -> None:
    """Each caller sends this so many times at once; what was answered is printed."""

    async def send(caller: Api) -> int:
        try:
            await caller.call("POST", path, body=body)
        except ProblemError as error:
            if error.status not in {429, 503}:
                raise
            return error.status
        return 200

    answers = await asyncio.gather(*(send(caller) for caller in callers for _ in range(count)))
    say(f"{len(answers)} times POST {path}: {dict(Counter(answers))}")


async def _child(stack: Stack, others: Iterable[int] = ()) -> int:
    """The process of the build that runs beside those of others."""
    work = stack.dev.directory / ".k9" / "work"
    began = perf_counter()
    while not (found := set(children_of(work)).difference(others)):
        if perf_counter() - began > _WAIT_S:
            raise DrillFailed("no build runs")
        await asyncio.sleep(0.01)
    return found.pop()


async def _attempts_killed(stack: Stack) -> None:
    before = (await _figures(stack, WORKER)).get("k9_build_attempts_released_total{cause=fault}", 0)
    building = asyncio.create_task(stack.k9("build", MODEL, "--force"))
    os.kill(await _child(stack), signal.SIGKILL)
    released = has("k9_build_attempts_released_total{cause=fault}", before + 1)
    await until(stack, "K9BuildAttemptsReleased", WORKER, released)
    await building
    say("the build was published by another attempt")


async def _builds_wait(stack: Stack, api: Api) -> None:
    """Every slot of the worker has a build that does not advance."""
    await until(stack, "no build is open", WORKER, lacks("k9_oldest_open_build_seconds"))
    slots = int((await _figures(stack, WORKER))["k9_build_slots"])
    names = [f"drill-{number}" for number in range(slots + 1)]
    rows = np.random.default_rng(2).normal(size=(20, 8)).astype(np.float32)
    for name in names:
        for number, row in enumerate(rows):
            await stack.resources.embedding_service.store_embedding(name, f"p{number}", row)
    asked = []
    stopped: set[int] = set()
    try:
        for name in names[:slots]:
            reply = await api.call("POST", path_of("models", name, "builds"), body={})
            asked.append(reply["build_id"])
            child = await _child(stack, stopped)
            os.kill(child, signal.SIGSTOP)
            stopped.add(child)
        waiting = await api.call("POST", path_of("models", names[-1], "builds"), body={})
        await until(stack, "K9BuildsWaiting", WORKER, has("k9_oldest_waiting_build_seconds"))
        full = await _figures(stack, WORKER)
        say(f"k9_builds_running {full['k9_builds_running']:g} of k9_build_slots {slots}")
        await until(stack, "K9BuildLong", WORKER, has("k9_oldest_open_build_seconds"))
        await api.call("DELETE", path_of("builds", asked[0]))
        say("the first is cancelled, as the runbook says of one that does not advance")
        began = perf_counter()
        path = path_of("builds", waiting["build_id"])
        while (await api.call("GET", path))["status"] != "published":
            if perf_counter() - began > _WAIT_S:
                raise DrillFailed("the build that waited was not published")
            await asyncio.sleep(0.2)
        say(f"the one that waited is published after {perf_counter() - began:.1f} s")
    finally:
        for child in stopped:
            try:
                os.kill(child, signal.SIGCONT)
            except ProcessLookupError:  # it was cancelled
                continue
    await until(stack, "both end", WORKER, lacks("k9_oldest_open_build_seconds"))


async def _row_of_a_newer_release(stack: Stack) -> None:
    """A row of the builds table that this code cannot read."""
    name = stack.settings.table(tables.BUILDS.name)
    row = {
        "build_id": {"S": "of-a-newer-release"},
        "model_version": {"S": MODEL},
        "requested_at": {"S": "2026-01-01T00:00:00.000000Z"},
        "status": {"S": "queued"},
        "format": {"S": "unknown"},
        tables.OPEN: {"S": "1"},
    }
    await stack.resources.dynamo.call("put_item", TableName=name, Item=row)
    await until(stack, "K9BuildRowsUnreadable", WORKER, has("k9_build_rows_unreadable_total"))
    key = row_key(build_id="of-a-newer-release")
    await stack.resources.dynamo.call("delete_item", TableName=name, Key=key)
    await stack.k9("build", MODEL, "--force")


async def _deletion_waits(stack: Stack, api: Api) -> None:
    """Another worker has the lease of a deletion, and does nothing."""
    resources, name = stack.resources, "drill-0"
    async with _stopped(stack.dev.parts()["worker"].pid):
        await api.call("DELETE", path_of("models", name))
        deletion = await resources.model_deletions.claim(await resources.models.find_model(name))
    if deletion is None:
        raise DrillFailed("the deletion could not be claimed")
    await until(stack, "K9DeletionsWaiting", WORKER, has("k9_deletions_waiting{kind=model}"))
    await resources.model_deletions.release(deletion)
    await until(stack, "the same ends", WORKER, lacks("k9_deletions_waiting{kind=model}"))


if __name__ == "__main__":
    run(drill)
