"""What stands between a build and the one it would replace, and how its end becomes known."""

import asyncio
import errno
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from core.errors import Unavailable
from core.models import Build, BuildParameters
from core.resources import Resources
from core.retry import RetryPolicy
from tests.worker.work import build, store, work


async def remove(resources: Resources, model_version: str, rows: range) -> None:
    """Deletes products."""
    places = asyncio.Semaphore(16)

    async def one(row: int) -> None:
        async with places:
            await resources.embedding_service.delete_embedding(model_version, f"p{row:05d}")

    await asyncio.gather(*map(one, rows))


async def current(resources: Resources, model_version: str) -> str | None:
    """The id of the build that answers."""
    return (await resources.models.get_model(model_version)).current_build_id


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr("worker.building.attempt._BACKOFF", RetryPolicy(0.01, 60.0))


async def test_a_catalogue_that_is_mostly_gone_needs_force(
    resources: Resources, model_version: str
) -> None:
    """What is left keeps all of its neighbours, and is no reason to forget nine tenths."""
    await store(resources, model_version, 100)
    first = await build(resources, model_version)
    await remove(resources, model_version, range(10, 100))
    stopped = await build(resources, model_version)
    assert stopped.status == "failed"
    assert "10 of its 100 products" in (stopped.error or "")
    assert "force" in (stopped.error or "")
    assert await current(resources, model_version) == first.build_id
    forced = await build(resources, model_version, BuildParameters(force=True))
    assert forced.manifest is not None
    assert forced.manifest["changes"]["overlap"] == 1.0


async def test_one_product_in_common_is_another_catalogue(
    resources: Resources, model_version: str
) -> None:
    """It has no neighbours to compare, and does not let the others pass."""
    await store(resources, model_version, 60)
    first = await build(resources, model_version)
    await remove(resources, model_version, range(1, 60))
    vectors = np.random.default_rng(3).standard_normal((60, 8)).astype(np.float32)
    others = [(f"q{number}", vector) for number, vector in enumerate(vectors)]
    await resources.embedding_service.store_batch(model_version, others)
    stopped = await build(resources, model_version)
    assert stopped.status == "failed"
    assert "1 of its 60 products" in (stopped.error or "")
    assert await current(resources, model_version) == first.build_id


async def test_a_build_asked_for_before_a_promotion_does_not_take_it_back(
    resources: Resources, model_version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going back is not undone by what was under way; asked for again, the build is theirs."""
    await store(resources, model_version, 30)
    good = await build(resources, model_version)
    later = await build(resources, model_version)
    upload = type(resources.versions).upload
    again: list[Build] = []

    async def promoting(self: object, *arguments: Any) -> Any:
        await resources.promotions.promote(model_version, good.build_id)
        if again:
            again.append(await resources.build_service.request(model_version, BuildParameters()))
        return await upload(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(type(resources.versions), "upload", promoting)
    held = await build(resources, model_version)
    assert (held.status, held.fence) == ("failed", 1)
    assert f"build {good.build_id} is pinned" in (held.error or "")
    assert await current(resources, model_version) == good.build_id
    again.append(later)
    theirs = await build(resources, model_version)
    assert again[-1].build_id == theirs.build_id
    assert theirs.status == "published"
    model = await resources.models.get_model(model_version)
    assert (model.current_build_id, model.pinned) == (theirs.build_id, False)


async def test_a_heartbeat_after_the_publishing_does_not_lose_the_end(
    resources: Resources, model_version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim it finds ended was ended by this very try: what comes after publishing is done."""
    before = published_so_far()
    beat, publish = type(resources.builds).beat, type(resources.promotions).publish
    done = asyncio.Event()

    async def late(self: Any, claimed: Build, progress: Any) -> None:
        if progress.stage == "publish":
            await done.wait()
        await beat(self, claimed, progress)

    async def slowly(self: Any, *arguments: Any) -> None:
        await publish(self, *arguments)
        done.set()
        await asyncio.Event().wait()  # its answer is on the way, and is overtaken

    monkeypatch.setattr(type(resources.builds), "beat", late)
    monkeypatch.setattr(type(resources.promotions), "publish", slowly)
    await store(resources, model_version, 10)
    published = await build(resources, model_version)
    assert (published.status, published_so_far()) == ("published", before + 1)


async def test_a_publishing_whose_answer_is_lost_is_done(
    resources: Resources, model_version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not tried again, and what comes after it is done."""
    before = published_so_far()
    publish = type(resources.promotions).publish

    async def lost(self: Any, *arguments: Any) -> None:
        await publish(self, *arguments)
        raise Unavailable("DynamoDB did not answer")

    monkeypatch.setattr(type(resources.promotions), "publish", lost)
    await store(resources, model_version, 10)
    published = await build(resources, model_version)
    assert (published.status, published.fence) == ("published", 1)
    assert published_so_far() == before + 1


def published_so_far() -> float:
    """What the metric says, which is counted with all else that follows a publishing."""
    return REGISTRY.get_sample_value("k9_builds_ended_total", {"status": "published"}) or 0


@pytest.mark.usefixtures("hurried")
async def test_a_full_disk_is_named(
    resources: Resources, model_version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asked for the build learns what to mend, after as many tries as another fault has."""

    def full(_self: object, _page: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "a path")

    monkeypatch.setattr("worker.building.builder.RowWriter.append", full)
    await store(resources, model_version, 10)
    asked = await resources.build_service.request(model_version, BuildParameters())
    ended = await ended_after_tries(resources, asked.build_id)
    assert (ended.status, ended.faults) == ("failed", 2)
    assert "No space left on device" in (ended.error or "")
    assert "a path" not in (ended.error or "")


@pytest.mark.usefixtures("hurried")
async def test_a_file_that_the_child_cannot_write_is_named(
    resources: Resources, model_version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Under a limit of the system on the size of files."""
    shell = tmp_path / "limited"
    shell.write_text(f'#!/bin/sh\nulimit -f 40\ntrap "" XFSZ\nexec {sys.executable} "$@"\n')
    shell.chmod(0o700)
    monkeypatch.setattr("worker.building.launcher.sys.executable", str(shell))
    await store(resources, model_version, 1000)
    parameters = BuildParameters(matrix_k=50)
    asked = await resources.build_service.request(model_version, parameters)
    ended = await ended_after_tries(resources, asked.build_id)
    assert ended.status == "failed"
    assert "File too large" in (ended.error or "")


async def ended_after_tries(resources: Resources, build_id: str) -> Build:
    """The build, worked on until it has ended."""
    for _ in range(resources.settings.building.build_attempts_max):
        await work(resources.settings)
        build = await resources.builds.get_build(build_id)
        if not build.open:
            break
        await resources.queue.enqueue(build_id, build.fence)
    return await resources.builds.get_build(build_id)
