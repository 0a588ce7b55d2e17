"""A site whose caches a test can reach into, while the API stands still or is down."""

import argparse
import asyncio
import os
import re
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from core.models import Model
from core.names import directory_of
from core.versions import VersionRecord
from tests.api.test_process import client_at
from tests.emulators import CREDENTIALS, free_port
from tests.faults.questions import Questions
from tests.faults.site import Site, open_site
from tests.worker.forgery import replace_object


class Machine:
    """The site, and what is on its disk."""

    def __init__(self, site: Site, caches: Path, metrics_port: int) -> None:
        self.site = site
        self.resources = site.resources
        self.caches = caches
        """Directory of the API's cache and the workers' work."""
        self._metrics_port = metrics_port

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """An operator's client of the API, once that answers."""
        port = int(self.site.api_url.rpartition(":")[2])
        async with client_at(port, self.site.pool.token("operators")) as client:
            yield client

    def signal_api(self, number: signal.Signals) -> None:
        """SIGSTOP, SIGCONT, or SIGKILL, after which it starts again."""
        pid = self.site.parts["api"].pid
        assert pid is not None
        os.kill(pid, number)

    async def refusals(self, where: str) -> float:
        """How many versions the API has refused since it started: from `s3`, or the `cache`."""
        async with httpx.AsyncClient() as client:
            reply = await client.get(f"http://127.0.0.1:{self._metrics_port}/metrics")
        found = re.search(
            rf'^k9_versions_refused_total{{reason="{where}"}} (.+)$', reply.text, re.MULTILINE
        )
        return float(found[1]) if found else 0.0

    def cached(self, model: Model, name: str) -> Path:
        """The API's copy of a file of the current build."""
        version = f"{model.current_build_id}.{model.current_fence}"
        cache = directory_of(self.caches / "cache", self.resources.settings.environment)
        return cache / "versions" / model.model_version / version / name

    async def damage_object(
        self, model: Model, name: str, how: Callable[[bytes], bytes]
    ) -> Callable[[], Awaitable[None]]:
        """Damages a file of the current build in S3; calling the answer mends it."""
        objects = self.resources.objects
        build = await self.resources.builds.get_build(model.current_build_id or "")
        key = VersionRecord.of(build).prefix + name
        whole = await objects.get_bytes(key, 1 << 30)
        await replace_object(objects, key, how(whole))

        async def mend() -> None:
            await replace_object(objects, key, whole)

        return mend

    def damage_copy(self, model: Model, name: str, how: Callable[[bytes], bytes]) -> None:
        """Damages the API's copy of a file: another file under its name, as no process maps it."""
        path = self.cached(model, name)
        whole = path.read_bytes()
        path.unlink()
        path.write_bytes(how(whole))


@asynccontextmanager
async def open_machine() -> AsyncIterator[Machine]:
    """A machine with nothing on it."""
    with tempfile.TemporaryDirectory(prefix="k9-caches-") as name:
        directory, port = Path(name), free_port()
        async with open_site(
            K9_CACHE_DIR=str(directory / "cache"),
            K9_WORK_DIR=str(directory / "work"),
            K9_METRICS_PORT=str(port),
        ) as site:
            yield Machine(site, directory, port)


def main(
    doc: str | None, act: Callable[[Machine, Questions], Awaitable[list[str]]], asked: Questions
) -> int:
    """Reads the arguments, which change what is asked, and runs; the exit status."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=asked.rows)
    parser.add_argument("--dimension", type=int, default=asked.dimension)
    parser.add_argument("--questions", type=int, default=asked.each, help="of each of three kinds")
    arguments = parser.parse_args()
    rows, dimension, each = arguments.rows, arguments.dimension, arguments.questions

    async def run() -> list[str]:
        async with open_machine() as machine:
            return await act(machine, Questions(asked.model, rows, dimension, each))

    os.environ |= CREDENTIALS
    wrong = asyncio.run(run())
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0
