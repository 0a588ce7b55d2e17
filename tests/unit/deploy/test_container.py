"""What runs in containers: the health check, and the parts beside API and worker."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from core.files import write_atomically
from core.settings import Building, Http, Settings
from deploy.container.health import problem_of
from deploy.local.files import RunningStack, read_stack
from deploy.local.gateway import Gateway, SavingGateway
from tests.emulators import free_port

METRICS = b"# HELP k9_event_loop_delay_longest_seconds x\nk9_event_loop_delay_longest_seconds %s\n"


@asynccontextmanager
async def _answering(status: int, body: bytes) -> AsyncIterator[Settings]:
    """The settings of processes whose ports for operations give this answer."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        yield Settings(http=Http(metrics_port=port), building=Building(worker_metrics_port=port))


@pytest.mark.parametrize(
    ("role", "status", "body", "words"),
    [
        ("api", 200, b"", None),
        ("api", 503, b"", "answers 503"),
        ("worker", 200, METRICS % b"0.25", None),
        ("worker", 200, METRICS % b"75.5", "stalled for 76 s"),
        ("worker", 200, b"other 1\n", "does not measure"),
    ],
)
async def test_a_container_is_healthy_while_its_event_loop_runs(
    role: str, status: int, body: bytes, words: str | None
) -> None:
    """The API's answers by itself; how late a worker's is stands in its metrics."""
    async with _answering(status, body) as settings:
        problem = await asyncio.to_thread(problem_of, role, settings)
    assert (problem is None) if words is None else (problem is not None and words in problem)


@pytest.mark.parametrize("role", ["api", "worker"])
def test_a_container_that_does_not_answer_is_not_healthy(role: str) -> None:
    """Nor is one whose port is turned off: nobody could tell."""
    port = free_port()
    silent = Settings(http=Http(metrics_port=port), building=Building(worker_metrics_port=port))
    assert "does not answer" in str(problem_of(role, silent))
    off = Settings(http=Http(metrics_port=0), building=Building(worker_metrics_port=0))
    assert "METRICS_PORT is 0" in str(problem_of(role, off))


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        ("health", ["queue"], "the role is api or worker"),
        ("stack", [], "name one of aws, valkey, ready, setup, sample"),
        ("stack", ["nothing"], "name one of"),
        ("stack", ["ready"], "ready takes"),
        ("stack", ["ready", "valkey"], "valkey does not answer"),
    ],
)
def test_a_wrong_part_is_one_line(
    tmp_path: Path, module: str, arguments: list[str], words: str
) -> None:
    """And a health check that fails says why, where `docker inspect` shows it."""
    done = subprocess.run(
        [sys.executable, "-m", f"deploy.container.{module}", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_stack_of_containers_runs_for_whoever_can_read_its_file(tmp_path: Path) -> None:
    """Its process ids mean nothing in another container."""
    stack = RunningStack(0, "", {"K9_URL": "http://api:3001"}, "pool", "client", "password")
    (tmp_path / "stack.json").write_bytes(msgspec.json.encode(stack))
    assert read_stack(tmp_path) == stack


async def _written(path: Path) -> None:
    async with asyncio.timeout(20):
        while True:
            if os.path.exists(path):  # noqa: ASYNC240, PTH110 - a moment
                return
            await asyncio.sleep(0.01)


_LIFESPAN = {"type": "lifespan"}


async def _aws(_scope: Any, receive: Callable[[], Awaitable[Any]], _send: Any) -> None:
    await receive()


async def _drop(_message: Any) -> None: ...


def _stopped_once(path: Path) -> Callable[[], Awaitable[dict[str, str]]]:
    """A `receive` that has the stop once a file is there."""

    async def receive() -> dict[str, str]:
        await _written(path)
        return {"type": "lifespan.shutdown"}

    return receive


_FORKS = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


@_FORKS
async def test_the_state_is_saved_after_a_change_and_not_without(tmp_path: Path) -> None:
    """So that a killed emulator starts with what it had a few seconds before."""
    stopped = asyncio.Event()

    async def receive() -> dict[str, str]:
        await stopped.wait()
        return {"type": "lifespan.shutdown"}

    saved = tmp_path / "saved"
    gateway = Gateway(_aws, frozenset({"aws:4566"}), "key", "secret")
    saving = SavingGateway(gateway, 0.01, saved.touch)
    running = asyncio.create_task(saving(_LIFESPAN, receive, _drop))
    await asyncio.sleep(0.1)
    assert not saved.exists()
    gateway.changed = True
    await _written(saved)
    assert not gateway.changed
    stopped.set()
    await running


@_FORKS
async def test_saving_goes_on_after_a_fork_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As where there is too little memory for a moment; it is told."""
    saved, fork, failures = tmp_path / "saved", os.fork, ["first"]

    def failing() -> int:
        if failures:
            failures.pop()
            raise OSError(12, "Cannot allocate memory")
        return fork()

    monkeypatch.setattr(os, "fork", failing)
    gateway = Gateway(_aws, frozenset(), "key", "secret")
    gateway.changed = True
    async with asyncio.timeout(20):
        await SavingGateway(gateway, 0.01, saved.touch)(_LIFESPAN, _stopped_once(saved), _drop)
    assert capfd.readouterr().err.count("Cannot allocate memory") == 1


@_FORKS
async def test_a_stop_does_not_wait_for_a_save_nor_is_overtaken_by_it(tmp_path: Path) -> None:
    """The emulator's own save at its stop is the newer one."""
    begun = tmp_path / "begun"

    def save() -> None:
        write_atomically(begun, str(os.getpid()).encode())
        time.sleep(30)

    gateway = Gateway(_aws, frozenset(), "key", "secret")
    gateway.changed = True
    async with asyncio.timeout(20):
        await SavingGateway(gateway, 0.01, save)(_LIFESPAN, _stopped_once(begun), _drop)
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)
