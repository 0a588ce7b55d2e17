"""The main job as a newcomer meets it: `k9 dev`, neighbours, import, build, stop, start again."""

import asyncio
import hashlib
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from deploy.local.processes import identity
from tests.e2e.dev import run_in, running_dev

_STOP_S = 10.0

pytestmark = pytest.mark.timeout(300)


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

    async with running_dev(tmp_path) as dev:
        shown = await dev.until("Ctrl-C stops everything")
        assert "Neighbours of pandas" in shown
        assert "polars" in shown

        second = await run_in(tmp_path, "dev", "--port", "0")
        assert (second[0], second[2].count("\n")) == (1, 1)
        assert "already running" in second[2]

        status, out, error = await run_in(
            tmp_path, "neighbors", "minilm-l6-v2", "pandas", "--k", "3"
        )
        assert (status, error) == (0, "")
        assert "polars" in out
        await _filtered(tmp_path)

        await _pasted_curl_works(shown)

        status, out, error = await run_in(tmp_path, "import", "rows.jsonl", "--model", "own")
        assert (status, error) == (0, "")
        assert out.startswith("51 embeddings of own stored")
        status, out, error = await run_in(tmp_path, "build", "own")
        assert (status, error) == (0, "")
        assert "published" in out
        assert "recall@" in out
        status, out, _ = await _until_found(tmp_path, "own", odd)
        assert (status, "p0" in out) == (0, True)
        await _matrix_is_downloaded(tmp_path, shown, "own")
        status, out, error = await run_in(tmp_path, "rebuild", "own")
        assert (status, error) == (0, "")
        assert "own: all 7 files have the same SHA-256 as before" in out

        status, out, error = await run_in(tmp_path, "neighbors", "own", "none/such")
        assert (status, out, error.count("\n")) == (1, "", 1)
        status, out, _ = await run_in(tmp_path, "tables", "counts")
        assert (status, "5051" in out.replace(",", "")) == (0, True)

        groups = {part.pid for part in dev.parts().values()}
        assert len(groups) == 4
        assert await dev.stop() < _STOP_S
        assert dev.process.returncode == 0
        assert not _group_members(groups)
    assert not (tmp_path / ".k9" / "stack.json").exists()
    assert not (tmp_path / ".k9" / "unclean").exists()

    async with running_dev(tmp_path) as dev:
        shown = await dev.until("Ctrl-C stops everything")
        assert "sample loaded" not in shown
        assert "published" not in shown
        assert "not clean" not in shown
        status, out, _ = await _until_found(tmp_path, "own", odd)
        assert (status, "p0" in out) == (0, True)


async def _filtered(directory: Path) -> None:
    """Neighbours that match; and a filter that is none, with the place of the mistake."""
    asked = ("neighbors", "minilm-l6-v2", "pandas", "--filter")
    status, out, error = await run_in(directory, *asked, '{"price": {"$exists": false}}')
    assert (status, error, "polars" in out) == (0, "", True)
    status, out, error = await run_in(directory, *asked, '{"price": {"$exists": true}}')
    assert (status, error, "polars" in out) == (0, "", False)
    for text, why in (('{"price": {"$lt": "x"}}', "filter.price.$lt"), ("{", "no JSON")):
        status, out, error = await run_in(directory, *asked, text)
        assert (status, out, error.count("\n")) == (1, "", 1)
        assert why in error


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


async def _matrix_is_downloaded(directory: Path, shown: str, model: str) -> None:
    """By its URL alone, without a key of the embedded AWS."""
    _, token, _ = await run_in(directory, "token", "--operator")
    api = re.search(r"api on (\S+),", shown)
    assert api
    async with aiohttp.ClientSession() as session:
        own = {"Authorization": f"Bearer {token.strip()}"}
        async with session.get(f"{api[1]}/models/{model}/matrix", headers=own) as reply:
            file = (await reply.json())["files"]["parquet"]
        async with session.get(file["url"]) as reply:
            assert reply.status == 200
            assert hashlib.sha256(await reply.read()).hexdigest() == file["sha256"]


async def _until_found(directory: Path, model: str, product_id: str) -> tuple[int, str, str]:
    """The API takes a moment to see a build that was just published."""
    for _ in range(10):
        found = await run_in(directory, "neighbors", model, product_id)
        if found[0] == 0:
            return found
        await asyncio.sleep(0.3)
    return await run_in(directory, "neighbors", model, product_id)


async def test_a_part_that_dies_is_started_again(tmp_path: Path) -> None:
    """With a line that says so."""
    async with running_dev(tmp_path, "--empty") as dev:
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
    async with running_dev(tmp_path) as dev:
        await dev.until("Neighbours of pandas")
        parts = dev.parts()
        os.kill(parts["aws"].pid, signal.SIGSTOP)  # it must not write on its parent's death
        dev.process.kill()
        await dev.process.wait()
        os.kill(parts["aws"].pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            while any(identity(part.pid) == part.identity for part in parts.values()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    async with running_dev(tmp_path) as dev:
        shown = await dev.until("Ctrl-C stops everything")
        assert "the last stop was not clean" in shown
        assert "all rows are gone" in shown
        assert "whose tables do not exist" in shown
        assert "sample loaded: 5,000" in shown
        assert "Neighbours of pandas" in shown
