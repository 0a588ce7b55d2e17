"""`K9_API_PROCESSES`: several processes on one port, which die, hang and stop."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api.conftest import MODEL, Service
from tests.api.serving import IDS, assert_problem, eventually, path_of
from tests.api.test_process import client_at, environ_of, running
from tests.emulators import free_port
from tests.processes import Process

CLIENTS = 8
NEIGHBORS = path_of(MODEL, "products", IDS[0], "neighbors")
SEARCH = f"/models/{MODEL}/search"


class Pair:
    """Two processes on one port."""

    def __init__(self, parent: Process, url: str, token: str, metrics: httpx.AsyncClient) -> None:
        self.parent = parent
        self.url = url
        self.headers = {"authorization": f"Bearer {token}"}
        self.operations = metrics

    def children(self) -> list[int]:
        """The process ids, in the order of their starts."""
        pid = self.parent.pid
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    async def figures(self, name: str) -> dict[str, float]:
        """A metric without further labels, by process."""
        reply = await self.operations.get("/metrics")
        return {
            sample.labels["process"]: sample.value
            for family in text_string_to_metric_families(reply.text)
            for sample in family.samples
            if sample.name == name
        }

    async def until(self, name: str, values: dict[str, float]) -> None:
        """Waits until a metric has these values."""
        async with asyncio.timeout(30):
            for _ in iter(int, 1):
                if await self.figures(name) == values:
                    return
                await asyncio.sleep(0.05)

    async def until_sum(self, name: str, value: float) -> None:
        """Waits until a metric has this value over both."""
        async with asyncio.timeout(30):
            for _ in iter(int, 1):
                if sum((await self.figures(name)).values()) == value:
                    return
                await asyncio.sleep(0.02)

    def client(self) -> httpx.AsyncClient:
        """A client with one connection."""
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
        return httpx.AsyncClient(base_url=self.url, headers=self.headers, limits=limits, timeout=20)


@asynccontextmanager
async def pair(service: Service, **more: str) -> AsyncIterator[Pair]:
    """Both, once they accept requests and have the index."""
    port, operations = free_port(), free_port()
    environ = environ_of(
        service.settings,
        K9_PORT=str(port),
        K9_METRICS_PORT=str(operations),
        K9_API_PROCESSES="2",
        **more,
    )
    token = service.pool.token("operators")
    # A connection that is kept would be of one process.
    fresh = httpx.Limits(max_keepalive_connections=0)
    url = f"http://127.0.0.1:{operations}"
    async with (
        running(environ) as parent,
        httpx.AsyncClient(base_url=url, limits=fresh, timeout=20) as metrics,
    ):
        both = Pair(parent, f"http://127.0.0.1:{port}", token, metrics)
        async with client_at(port, token) as client:
            await eventually(client, MODEL)
        await both.until("k9_ready", {"0": 1.0, "1": 1.0})
        await both.until("k9_http_connections", {"0": 0.0, "1": 0.0})
        yield both


def _listens_above_connections(pid: int) -> bool:
    """Whether the highest socket that a process has open is the one it listens on."""
    rows = [row.split() for row in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    listening = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A"}
    highest = max(Path(f"/proc/{pid}/fd").iterdir(), key=lambda path: int(path.name))
    return str(highest.readlink()) in listening


class Asking:
    """A client on one connection that asks without a pause."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.answers = 0
        self.failures: list[str] = []

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                reply = await self._client.get(NEIGHBORS)
            except httpx.TransportError as error:
                self.failures.append(type(error).__name__)
            else:
                if reply.status_code == 200:
                    self.answers += 1
                else:
                    self.failures.append(str(reply.status_code))

    async def more(self) -> None:
        """Waits for further answers."""
        before = self.answers
        async with asyncio.timeout(20):
            for _ in iter(int, 1):
                if self.answers >= before + 3:
                    return
                await asyncio.sleep(0.01)


async def test_a_killed_process_loses_its_own_requests_and_returns(service: Service) -> None:
    """Clients of the other notice nothing; its own see one failure at the most, and go on."""
    async with pair(service) as both:
        clients = [both.client() for _ in range(CLIENTS)]
        asking = [Asking(client) for client in clients]
        tasks = [asyncio.create_task(each.run()) for each in asking]
        try:
            await asyncio.gather(*(each.more() for each in asking))
            open_at = await both.figures("k9_http_connections")
            assert all(_listens_above_connections(pid) for pid in both.children())
            number = max(open_at, key=lambda name: open_at[name])
            os.kill(both.children()[int(number)], signal.SIGKILL)
            await both.until("k9_api_process_restarts_total", {"0": 0.0, "1": 0.0} | {number: 1.0})
            await asyncio.gather(*(each.more() for each in asking))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(client.aclose() for client in clients))
        failures = [each.failures for each in asking]
        assert sum(map(len, failures)) <= open_at[number], (open_at, failures)
        assert all(len(each) <= 1 for each in failures), failures
        await both.until("k9_ready", {"0": 1.0, "1": 1.0})
        both.parent.terminate()
        assert await both.parent.wait() == 0


async def test_a_stop_answers_what_all_processes_have_begun(service: Service) -> None:
    """Each finishes its requests; then the port is closed, and no process is left."""

    async def slow(begun: asyncio.Event, rest: asyncio.Event) -> AsyncIterator[bytes]:
        yield b'{"product_id": '
        begun.set()
        await rest.wait()
        yield b'"plain"}'

    async with pair(service) as both:
        children = both.children()
        begun, rest = [asyncio.Event() for _ in range(CLIENTS)], asyncio.Event()
        clients = [both.client() for _ in range(CLIENTS)]
        held = [
            asyncio.create_task(client.post(SEARCH, content=slow(one, rest)))
            for client, one in zip(clients, begun, strict=True)
        ]
        await asyncio.gather(*(one.wait() for one in begun))
        await both.until_sum("k9_http_in_flight", CLIENTS)
        both.parent.terminate()
        both.parent.send_signal(signal.SIGINT)  # as Ctrl-C does beside its parent's own stop
        async with asyncio.timeout(20):
            while True:
                try:
                    reader, writer = await asyncio.open_connection(*_address(both.url))
                except ConnectionRefusedError:
                    break
                writer.close()
                del reader
                await asyncio.sleep(0.02)
        rest.set()
        assert [(await reply).status_code for reply in held] == [200] * CLIENTS
        await asyncio.gather(*(client.aclose() for client in clients))
        async with asyncio.timeout(20):
            assert await both.parent.wait() == 0
        assert not any(_runs(child) for child in children)


async def test_no_process_outlives_its_parent(service: Service) -> None:
    """Nobody would start one again that dies, or stop them."""
    async with pair(service) as both:
        children = both.children()
        assert len(children) == 2
        both.parent.kill()
        async with asyncio.timeout(20):
            for _ in iter(int, 1):
                if not any(_runs(child) for child in children):
                    return
                await asyncio.sleep(0.05)


async def test_liveness_fails_while_a_process_hangs(service: Service) -> None:
    """Whichever of them is asked; readiness goes on, since the other answers."""
    async with pair(service) as both:
        child = both.children()[1]
        os.kill(child, signal.SIGSTOP)
        try:
            reply = await both.operations.get("/health/live")
            assert "1" in assert_problem(reply, 503, "unavailable")["detail"]
            assert (await both.operations.get("/health/ready")).status_code == 200
        finally:
            os.kill(child, signal.SIGCONT)
        assert (await both.operations.get("/health/live")).status_code == 200
        assert (await both.operations.get("/models")).status_code == 404


async def test_metrics_are_of_all_processes(service: Service) -> None:
    """Each series once a process, and every request in one of them."""
    async with pair(service) as both:
        for _ in range(CLIENTS):
            async with both.client() as client:
                assert (await client.get(NEIGHBORS)).status_code == 200
        reply = await both.operations.get("/metrics")
        families = list(text_string_to_metric_families(reply.text))
        names = [family.name for family in families]
        assert len(names) == len(set(names))
        counted = [
            sample
            for family in families
            for sample in family.samples
            if sample.name == "k9_http_requests_total" and "neighbors" in sample.labels["route"]
        ]
        assert sum(sample.value for sample in counted) == CLIENTS
        assert {sample.labels["process"] for sample in counted} <= {"0", "1"}


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_a_start_that_fails_is_told_once(service: Service, processes: str) -> None:
    """By the first process, and the others are not tried."""
    environ = environ_of(
        service.settings,
        K9_PORT=str(free_port()),
        K9_API_PROCESSES=processes,
        AWS_PROFILE="of-nobody",
    )
    async with running(environ) as process:
        _, written = await process.communicate()
    assert process.returncode == 1
    lines = [line for line in written.decode().splitlines() if "of-nobody" in line]
    assert len([line for line in lines if line.startswith("the API cannot start: ")]) == 1


async def test_a_port_that_is_taken_is_no_port_of_several(service: Service) -> None:
    """Another K9 on it would get half of the requests."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        environ = environ_of(service.settings, K9_PORT=port, K9_API_PROCESSES="2")
        async with running(environ) as process:
            _, written = await process.communicate()
    assert process.returncode == 1
    assert written.decode().splitlines() == [f"K9_PORT={port}: the port is taken on 127.0.0.1"]


def _runs(pid: int) -> bool:
    """Whether a process runs; nobody may have asked yet for the status of one that has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _address(url: str) -> tuple[str, int]:
    parsed = httpx.URL(url)
    return parsed.host, parsed.port or 80
