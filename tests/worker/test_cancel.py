"""A build that is cancelled stops where it is, and nothing of it becomes current."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from core.models import BuildParameters
from core.queue import BuildJob
from core.resources import Resources
from core.settings import Settings
from tests.worker.processes import children_of, until
from tests.worker.test_durability import has_ended, hurried, is_heavy, requested, worker
from tests.worker.work import build, store
from worker.context import open_context


async def test_a_cancelled_build_is_stopped(
    resources: Resources, model_version: str, settings: Settings
) -> None:
    """Its child is killed at the next heartbeat, its files go, and the next build may begin."""
    work_dir = settings.building.work_dir
    async with worker(settings) as context:
        build_id = await requested(resources, model_version, slow=True)
        await until(resources, build_id, is_heavy)
        assert children_of(work_dir)
        await resources.builds.cancel(build_id)
        async with asyncio.timeout(10):
            await context.runner.drain()
        assert not children_of(work_dir)
        assert not list(work_dir.rglob(f"{build_id}*"))
        cancelled = await resources.builds.get_build(build_id)
        assert cancelled.status == "cancelled"
        following = await resources.build_service.request(model_version, BuildParameters())
        ended = await until(resources, following.build_id, has_ended)
        assert ended.status == "published"
    assert (await resources.builds.get_build(build_id)) == cancelled


def cancelling(
    resources: Resources, build_id: str, monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    """Has the build cancelled when this is called, before it is done."""
    before = getattr(type(owner), name)

    async def act(self: object, *arguments: Any) -> Any:
        monkeypatch.undo()
        await resources.builds.cancel(build_id)
        return await before(self, *arguments)

    monkeypatch.setattr(type(owner), name, act)


@pytest.mark.parametrize("step", ["claim", "model", "upload", "publish"])
async def test_a_build_is_cancelled_before_a_step(
    resources: Resources,
    model_version: str,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    """Wherever it is found out: by the claim, by a heartbeat, or by the publishing itself."""
    build_id = await requested(resources, model_version)
    owner, name = {
        "claim": (resources.builds, "claim"),
        "model": (resources.models, "get_model"),
        "upload": (resources.versions, "upload"),
        "publish": (resources.promotions, "publish"),
    }[step]
    cancelling(resources, build_id, monkeypatch, owner, name)
    async with open_context(hurried(settings), reconcile=False) as context:
        await context.runner.start(BuildJob(build_id, 0))
        await context.runner.drain()
    ended = await resources.builds.get_build(build_id)
    assert (ended.status, ended.manifest) == ("cancelled", None)
    assert ended.fence == (1 if step == "claim" else 2)
    model = await resources.models.get_model(model_version)
    assert (model.current_build_id, model.open_build_id) == (None, None)


@pytest.mark.parametrize("stage", ["pull", "index", "matrix", "compare"])
async def test_a_build_is_cancelled_at_a_stage(
    resources: Resources,
    model_version: str,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    """While that goes on, and would for ever: it is broken off, its child too, and its files go."""
    current = None
    if stage == "compare":
        await store(resources, model_version, 20)
        current = (await build(resources, model_version)).build_id
    if stage == "pull":
        endless(resources, monkeypatch)
    else:
        halting(settings.building.work_dir, monkeypatch, stage)
    async with worker(settings, lease_s=60.0) as context:
        build_id = await requested(resources, model_version)
        await until(resources, build_id, lambda build: build.progress.stage == stage)
        assert len(children_of(settings.building.work_dir)) == (stage != "pull")
        await resources.builds.cancel(build_id)
        async with asyncio.timeout(20):
            await context.runner.drain()
    assert not children_of(settings.building.work_dir)
    assert not list(settings.building.work_dir.rglob(f"{build_id}*"))
    ended = await resources.builds.get_build(build_id)
    assert (ended.status, ended.manifest, ended.fence) == ("cancelled", None, 2)
    assert ended.progress.stage == stage
    model = await resources.models.get_model(model_version)
    assert (model.current_build_id, model.open_build_id) == (current, None)


def endless(resources: Resources, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has each pull wait for rows that do not come."""

    async def rows(_self: object, _model: object) -> Any:
        await asyncio.Event().wait()
        yield []

    monkeypatch.setattr(type(resources.embeddings), "get_embeddings_by_model", rows)


def halting(work_dir: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """Has each child stop itself at this stage."""
    trap = work_dir / "trap"
    trap.parent.mkdir(parents=True, exist_ok=True)
    trap.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.worker.halting {stage} "$@"\n')
    trap.chmod(0o700)
    monkeypatch.setattr("worker.building.launcher.sys.executable", str(trap))
