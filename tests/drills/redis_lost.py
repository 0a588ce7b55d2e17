"""Valkey hangs, is killed and comes back empty: `python -m tests.drills.redis_lost`."""

import os
import shutil
import signal
from time import perf_counter

from deploy.api_client import open_api, path_of
from deploy.local.files import OPERATOR
from deploy.local.sample import PRODUCT
from tests.drills.stack import (
    MODEL,
    DrillFailed,
    Stack,
    compare,
    run,
    running_stack,
    same_neighbors,
    say,
)
from tests.e2e.dev import run_in
from tests.e2e.tables import contents


async def drill() -> None:
    """Writes, searches and builds go on without it, and nothing is lost with it."""
    async with running_stack() as stack:
        neighbors = await stack.neighbors(PRODUCT)
        first = neighbors["index"]["build_id"]
        valkey = stack.dev.parts()["valkey"].pid
        os.kill(valkey, signal.SIGSTOP)
        say("Valkey hangs")
        status, out, _ = await run_in(stack.dev.directory, "doctor", "--calls", "0")
        if status != 1 or "failed   redis" not in out:
            raise DrillFailed("k9 doctor does not name Valkey")
        say("k9 doctor names it")
        await _use(stack)
        await stack.k9("build", MODEL, "--force")
        second = await stack.neighbors(PRODUCT, not_of=first)
        same_neighbors(neighbors, second)
        before = await contents(stack.resources)
        os.kill(valkey, signal.SIGKILL)
        data = stack.dev.directory / ".k9" / "valkey"
        shutil.rmtree(data)
        data.mkdir()
        say("Valkey killed, and its data removed")
        await stack.k9("build", MODEL, "--force")
        build = second["index"]["build_id"]
        same_neighbors(neighbors, await stack.neighbors(PRODUCT, not_of=build))
        compare(before, await contents(stack.resources))
        await stack.k9("doctor", "--calls", "0")


async def _use(stack: Stack) -> None:
    """Writes a report and searches, and prints how long that took."""
    token = await stack.running.fetch_token(stack.settings, OPERATOR, operator=True)
    async with open_api(stack.running.environ["K9_URL"], token) as api:
        began = perf_counter()
        await api.call("POST", "/reports", body={"title": "While Valkey hangs"})
        written = perf_counter()
        search = path_of("models", MODEL, "search")
        await api.call("POST", search, body={"product_id": PRODUCT})
        ended = perf_counter()
    say(f"a write took {(written - began) * 1e3:.0f} ms, a search {(ended - written) * 1e3:.0f} ms")


if __name__ == "__main__":
    run(drill)
