"""The main job as a newcomer meets it: `k9 dev`, neighbours, import, build, stop, start again."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import aiohttp
import msgspec
import pytest

from deploy.local.processes import PidFile, identity

_ROOT = Path(__file__).parents[2]
_K9 = [sys.executable, "-c", "from deploy.cli.main import main; main()"]
_START_S = 100.0
_STOP_S = 10.0

pytestmark = pytest.mark.timeout(300)


class _Dev:
    """A running `k9 dev`, and all that it printed."""

    def __init__(self, directory: Path, process: asyncio.subprocess.Process) -> None:
        self.directory = directory
        self.process = process
        self.output = ""

    async def until(self, pattern: str) -> str:
        """What it has printed once the pattern is in it."""
        assert self.process.stdout is not None
        async with asyncio.timeout(_START_S):
            while not re.search(pattern, self.output):
                line = await self.process.stdout.readline()
                assert line, f"k9 dev ended:\n{self.output}"
                self.output += line.decode()
        return self.output

    async def stop(self, number: signal.Signals = signal.SIGINT) -> float:
        """Stops it; in how many seconds."""
        began = monotonic()
        self.process.send_signal(number)
        rest, _ = await self.process.communicate()
        self.output += rest.decode()
        return monotonic() - began

    def parts(self) -> dict[str, PidFile]:
        """The processes it runs, by name."""
        return {
            path.stem: msgspec.json.decode(path.read_bytes(), type=PidFile)
            for path in (self.directory / ".k9" / "pids").glob("*.json")
        }


def _environ() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(_ROOT), "AWS_PROFILE": "someone-elses"}


@asynccontextmanager
async def _dev(directory: Path, *options: str) -> AsyncIterator[_Dev]:
    process = await asyncio.create_subprocess_exec(
        *_K9,
        "dev",
        "--port",
        "0",
        *options,
        cwd=directory,
        env=_environ(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    dev = _Dev(directory, process)
    try:
        yield dev
    finally:
        if process.returncode is None:
            await dev.stop()


async def _k9(directory: Path, *arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *_K9,
        *arguments,
        cwd=directory,
        env=_environ(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await process.communicate()
    return process.returncode or 0, out.decode(), error.decode()


def _group_members(groups: set[int]) -> list[int]:
    """Processes, of any age, in one of the groups."""

    def members() -> Iterator[int]:
        for path in Path("/proc").glob("[0-9]*"):
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) in groups and fields[0] not in {"Z", "X"}:
                yield int(path.name)

    return list(members())


async def test_the_main_job_from_first_start_to_second(tmp_path: Path) -> None:
    """Neighbours are shown; rows of one's own are imported, built, found; all of it is kept."""
    odd = "a/b 100% é"
    rows = [{"product_id": odd, "vector": [1.0, 0.1]}]
    rows += [{"product_id": f"p{n}", "vector": [1.0, n + 1.0]} for n in range(50)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    async with _dev(tmp_path) as dev:
        shown = await dev.until("Ctrl-C stops everything")
        assert "Neighbours of pandas" in shown
        assert "polars" in shown

        second = await _k9(tmp_path, "dev", "--port", "0")
        assert (second[0], second[2].count("\n")) == (1, 1)
        assert "runs already" in second[2]

        status, out, error = await _k9(tmp_path, "neighbors", "minilm-l6-v2", "pandas", "--k", "3")
        assert (status, error) == (0, "")
        assert "polars" in out

        await _pasted_curl_works(shown)

        status, out, error = await _k9(tmp_path, "import", "rows.jsonl", "--model", "own")
        assert (status, error) == (0, "")
        assert out.startswith("51 embeddings of own stored")
        status, out, error = await _k9(tmp_path, "build", "own")
        assert (status, error) == (0, "")
        assert "published" in out
        assert "recall@" in out
        status, out, _ = await _until_found(tmp_path, "own", odd)
        assert (status, "p0" in out) == (0, True)
        status, out, error = await _k9(tmp_path, "rebuild", "own")
        assert (status, error) == (0, "")
        assert "own: all 7 files have the SHA-256 that they had" in out

        status, out, error = await _k9(tmp_path, "neighbors", "own", "none/such")
        assert (status, out, error.count("\n")) == (1, "", 1)
        status, out, _ = await _k9(tmp_path, "tables", "counts")
        assert (status, "5051" in out.replace(",", "")) == (0, True)

        groups = {part.pid for part in dev.parts().values()}
        assert len(groups) == 4
        assert await dev.stop() < _STOP_S
        assert dev.process.returncode == 0
        assert not _group_members(groups)
    assert not (tmp_path / ".k9" / "stack.json").exists()
    assert not (tmp_path / ".k9" / "unclean").exists()

    async with _dev(tmp_path) as dev:
        shown = await dev.until("Ctrl-C stops everything")
        assert "sample loaded" not in shown
        assert "published" not in shown
        assert "not clean" not in shown
        status, out, _ = await _until_found(tmp_path, "own", odd)
        assert (status, "p0" in out) == (0, True)


async def _pasted_curl_works(shown: str) -> None:
    """The printed line's address and token, as a shell would take them."""
    found = re.search(r"curl -s '([^']+)' -H 'Authorization: ([^']+)'", shown)
    assert found
    async with (
        aiohttp.ClientSession() as session,
        session.get(found[1], headers={"Authorization": found[2]}) as reply,
    ):
        assert reply.status == 200
        assert len((await reply.json())["neighbors"]) == 5


async def _until_found(directory: Path, model: str, product_id: str) -> tuple[int, str, str]:
    """The API takes a moment to see a build that was just published."""
    for _ in range(10):
        found = await _k9(directory, "neighbors", model, product_id)
        if found[0] == 0:
            return found
        await asyncio.sleep(0.3)
    return await _k9(directory, "neighbors", model, product_id)


async def test_a_part_that_dies_is_started_again(tmp_path: Path) -> None:
    """With a line that says so."""
    async with _dev(tmp_path, "--empty") as dev:
        await dev.until("ready in")
        worker = dev.parts()["worker"]
        os.kill(worker.pid, signal.SIGKILL)
        await dev.until(r"worker ended \(killed by SIGKILL\); starting it again in 0\.5 s")
        async with asyncio.timeout(20):
            while dev.parts()["worker"] == worker:  # noqa: ASYNC110 - it is another process's file
                await asyncio.sleep(0.05)
        assert await dev.stop(signal.SIGTERM) < _STOP_S


async def test_a_stop_that_was_not_clean_is_told_and_mended(tmp_path: Path) -> None:
    """All is killed before the emulator wrote anything: the next start says so, and loads again."""
    async with _dev(tmp_path) as dev:
        await dev.until("Neighbours of pandas")
        parts = dev.parts()
        os.kill(parts["aws"].pid, signal.SIGSTOP)  # it must not write on its parent's death
        dev.process.kill()
        await dev.process.wait()
        os.kill(parts["aws"].pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            while any(identity(part.pid) == part.identity for part in parts.values()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    async with _dev(tmp_path) as dev:
        shown = await dev.until("Ctrl-C stops everything")
        assert "the last stop was not clean" in shown
        assert "all rows are gone" in shown
        assert "left without tables" in shown
        assert "sample loaded: 5,000" in shown
        assert "Neighbours of pandas" in shown
