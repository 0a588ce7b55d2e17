"""A real Prometheus on a loopback port, with the configuration of deploy/observability."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.emulators import free_port
from tests.observability.queries import PROMETHEUS, RULES

_START_S: Final = 60.0
_INTERVAL: Final = "15s"
_API, _WORKER = "api:3002", "worker:3003"

Series = list[tuple[dict[str, str], list[tuple[float, float]]]]
"""Labels, and time and value of each point."""


class Prometheus:
    """Asks it by its HTTP API."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def query(self, expression: str) -> int:
        """The number of series that it finds now.

        Raises:
            ValueError: it refuses the query.
        """
        return len(await self._get("query", query=expression))

    async def query_range(self, expression: str, start: float, end: float, step_s: float) -> Series:
        """What a panel shows of a time; numbers alone.

        Raises:
            ValueError: it refuses the query.
        """
        found = await self._get(
            "query_range", query=expression, start=str(start), end=str(end), step=str(step_s)
        )
        series = (
            (each["metric"], [(float(at), float(value)) for at, value in each["values"]])
            for each in found
        )
        numbers = (
            (labels, [point for point in points if point[1] == point[1]])
            for labels, points in series
        )
        return [(labels, points) for labels, points in numbers if points]

    async def rules(self) -> list[dict[str, Any]]:
        """The rules with their health."""
        async with self._session.get("/api/v1/rules") as reply:
            groups = (await reply.json())["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    async def scraped(self) -> bool:
        """Whether every target has been scraped, and answered."""
        async with self._session.get("/api/v1/targets") as reply:
            targets = (await reply.json())["data"]["activeTargets"]
        return bool(targets) and all(each["health"] == "up" for each in targets)

    async def _get(self, path: str, **parameters: str) -> Any:
        async with self._session.get(f"/api/v1/{path}", params=parameters) as reply:
            answer = await reply.json()
        if answer["status"] != "success":
            raise ValueError(f"{answer['error']}: {parameters['query']}")
        return answer["data"]["result"]


def configure(directory: Path, api: str, worker: str, interval: str) -> Path:
    """The configuration as it is committed, with other targets, and less time between scrapes."""
    text = (PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8")
    for name, address in ((_API, api), (_WORKER, worker), (_INTERVAL, interval)):
        if name not in text:
            raise ValueError(f"prometheus.yml has no {name}")
        text = text.replace(name, address)
    path = directory / "prometheus.yml"
    path.write_text(text, encoding="utf-8")
    shutil.copy(RULES, directory)
    return path


@asynccontextmanager
async def running(config: Path) -> AsyncIterator[Prometheus]:
    """Prometheus until the end of the block, once it has scraped every target."""
    port, log = free_port(), config.with_name("prometheus.log")
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={config.parent / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdout=output,
            stderr=output,
        )
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            prometheus = Prometheus(session)
            async with asyncio.timeout(_START_S):
                while not await _answers(prometheus):
                    if process.returncode is not None:
                        raise RuntimeError(f"Prometheus ended:\n{log.read_text()[-2000:]}")
                    await asyncio.sleep(0.1)
            yield prometheus
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _answers(prometheus: Prometheus) -> bool:
    try:
        return await prometheus.scraped()
    except (aiohttp.ClientError, KeyError):
        return False
