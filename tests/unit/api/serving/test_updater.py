"""Following the current builds: what is put to use, and what is not."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from api.health import Health
from api.serving.cost import INLINE_US_MAX
from api.serving.registry import IndexRegistry
from api.serving.segment import Segment
from api.serving.snapshot import RowRef
from api.serving.updater import IndexUpdater
from core.errors import Corrupt, K9Error, NoIndex, NotFound, NotYetVisible, Unavailable
from core.models import Watermark
from core.names import directory_of
from core.settings import Serving, Settings
from tests.unit.api.serving.versions import Listing, Shelf, damaged, model_of

ONE, TWO = ["a", "b", "c", "d"], ["a", "b", "c", "d", "e"]


def current_file(root: Path) -> Path:
    """Where a refresher writes down what is current."""
    return directory_of(root / "cache", Settings().environment) / "current.json"


class Rig:
    """A refresher over a shelf and a listing."""

    def __init__(self, root: Path, *, bytes_max: int = 1 << 30) -> None:
        self.shelf = Shelf(root / "shelf")
        self.listing = Listing()
        self.health = Health()
        models: Any = self.listing
        self.registry = IndexRegistry(models, bytes_max)
        resources: Any = SimpleNamespace(
            models=self.listing,
            builds=self.listing,
            versions=self.shelf,
            settings=Settings(serving=Serving(cache_dir=root / "cache", refresh_s=0.01)),
        )
        self.refresher = IndexUpdater(resources, self.registry, self.health)

    @property
    def loaded(self) -> Segment | None:
        """What answers."""
        return self.registry.loaded.get("m")

    @property
    def build_id(self) -> str | None:
        """The build that answers."""
        return None if self.loaded is None else self.loaded.build_id

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """With the refresher at work."""
        task = asyncio.create_task(self.refresher.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(holds: Callable[[], bool]) -> None:
    """Waits for it."""
    async with asyncio.timeout(20):
        for _ in iter(int, 1):
            if holds():
                return
            await asyncio.sleep(0.005)


async def restarted(root: Path, builds: dict[str, list[str]]) -> Rig:
    """A start without DynamoDB, after a run in which the last of these builds was current."""
    before = Rig(root)
    for build_id, ids in builds.items():
        before.shelf.add(build_id, ids)
    current = list(builds)[-1]
    before.listing.models = [model_of(current)]
    async with before.running():
        await until(lambda: before.build_id == current)
        await until(current_file(root).exists)
    rig = Rig(root)
    rig.shelf.manifests = before.shelf.manifests
    rig.listing.failure = Unavailable("away")
    return rig


async def test_a_new_build_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    """And a request that has the old one keeps it to its end."""
    rig = Rig(tmp_path)
    rig.shelf.add("b-1", ONE)
    rig.shelf.add("b-2", TWO)
    rig.listing.models = [model_of("b-1")]
    async with rig.running():
        await until(lambda: rig.build_id == "b-1")
        old = await rig.registry.wanted("m")
        rig.listing.models = [model_of("b-2")]
        await until(lambda: rig.build_id == "b-2")
        assert old.find("e") is None
        assert len(old.search_near(RowRef(0), 10).product_ids) == 3
        assert (await rig.registry.wanted("m")).find("e") is not None
        await asyncio.sleep(0.05)
        assert rig.shelf.asked == ["b-1", "b-2"]


async def test_a_bad_version_is_refused_and_the_old_one_serves_on(tmp_path: Path) -> None:
    """It is tried again with backoff, and not at each look."""
    rig = Rig(tmp_path)
    rig.shelf.add("b-1", ONE)
    rig.shelf.add("b-2", TWO)
    rig.shelf.manifests["b-2"] = damaged(rig.shelf.manifests["b-2"])
    rig.listing.models = [model_of("b-1")]
    async with rig.running():
        await until(lambda: rig.build_id == "b-1")
        rig.listing.models = [model_of("b-2")]
        await until(lambda: "b-2" in rig.shelf.asked)
        await asyncio.sleep(0.2)
        assert rig.build_id == "b-1"
        assert rig.shelf.asked.count("b-2") == 1
        assert rig.health.ready
        rig.shelf.add("b-3", TWO)
        rig.listing.models = [model_of("b-3")]
        await until(lambda: rig.build_id == "b-3")


@pytest.mark.parametrize("lasting", [Corrupt("another digest"), NotFound("gone")])
async def test_readiness_waits_for_what_may_yet_come_and_not_for_what_is_bad(
    tmp_path: Path, lasting: K9Error
) -> None:
    """S3 away: not ready. A version that is bad, or gone: a rebuild needs a way in."""
    rig = Rig(tmp_path)
    rig.shelf.failures["b-1"] = Unavailable("S3 does not answer")
    rig.shelf.failures["b-9"] = lasting
    rig.listing.models = [model_of("b-1")]
    async with rig.running():
        await until(lambda: rig.health.dependencies["s3"].state == "failing")
        assert not rig.health.ready
        rig.listing.models = [model_of("b-9")]
        await until(lambda: rig.health.ready)


async def test_readiness_does_not_wait_for_a_first_download_where_something_answers(
    tmp_path: Path,
) -> None:
    """S3 may hang; what is on this disk is waited for, and not a download beside it."""
    rig = Rig(tmp_path)
    rig.shelf.add("b-1", ONE)
    rig.shelf.hanging.add("b-2")
    rig.listing.models = [msgspec.structs.replace(model_of("b-2"), model_version="other")]
    async with rig.running():
        await until(lambda: "b-2" in rig.shelf.asked)
        await asyncio.sleep(0.05)
        assert not rig.health.ready  # a first download is all there is to wait for
        rig.shelf.here.add("b-1")
        rig.listing.models = [*rig.listing.models, model_of("b-1")]
        await until(lambda: rig.health.ready)
        assert rig.build_id == "b-1"
        assert "other" not in rig.registry.loaded


@pytest.mark.parametrize("failure", [NotFound("gone"), Corrupt("bad"), Unavailable("away")])
async def test_a_start_without_the_current_version_serves_the_one_before(
    tmp_path: Path, failure: K9Error
) -> None:
    """While it is on this disk; readiness tells, and what is current is taken once it is there."""
    rig = Rig(tmp_path)
    rig.shelf.add("b-1", ONE)
    rig.shelf.here.add("b-1")
    rig.shelf.failures["b-2"] = failure
    rig.listing.models = [model_of("b-2")]
    async with rig.running():
        await until(lambda: rig.build_id == "b-1" and "m" in rig.registry.troubles)
        assert rig.health.ready
        assert "b-2" in rig.registry.troubles["m"]
        s3 = rig.health.dependencies["s3"].state
        assert s3 == ("failing" if isinstance(failure, Unavailable) else "ok")
        rig.shelf.add("b-3", TWO)
        rig.listing.models = [model_of("b-3")]
        await until(lambda: rig.build_id == "b-3")
        assert rig.registry.troubles == {}


async def test_a_version_that_is_not_kept_any_more_answers_for_none(tmp_path: Path) -> None:
    """What was deleted since may have left no trace, and would be back."""
    rig = Rig(tmp_path)
    rig.shelf.add("b-1", ONE)
    rig.shelf.here.add("b-1")
    rig.shelf.failures["b-2"] = NotFound("gone")
    rig.listing.models = [model_of("b-2")]
    rig.listing.removed.add("b-1")
    async with rig.running():
        await until(lambda: "m" in rig.registry.troubles)
        with pytest.raises(Unavailable, match=r"gone from S3.*k9 rebuild m"):
            await rig.registry.wanted("m")
        assert rig.build_id is None


async def test_going_back_to_what_answers_ends_the_trouble(tmp_path: Path) -> None:
    """The version that serves on is made current again: nothing is left to tell."""
    rig = Rig(tmp_path)
    rig.shelf.add("b-1", ONE)
    rig.listing.models = [model_of("b-1")]
    async with rig.running():
        await until(lambda: rig.build_id == "b-1")
        rig.listing.models = [model_of("b-9")]
        await until(lambda: "damaged" in rig.registry.troubles.get("m", ""))
        rig.listing.models = [model_of("b-1")]
        await until(lambda: rig.registry.troubles == {})


async def test_a_process_without_any_model_is_ready(tmp_path: Path) -> None:
    """There is nothing that it could not answer."""
    rig = Rig(tmp_path)
    async with rig.running():
        await until(lambda: rig.health.ready)
        rig.health.draining = True
        assert not rig.health.ready


async def test_dynamodb_away_changes_nothing_that_is_loaded(tmp_path: Path) -> None:
    """Not even an error that nobody expected ends the task."""
    rig = Rig(tmp_path)
    rig.shelf.add("b-1", ONE)
    rig.listing.models = [model_of("b-1")]
    async with rig.running():
        await until(lambda: rig.build_id == "b-1")
        for failure in (Unavailable("away"), ZeroDivisionError("a bug")):
            rig.listing.failure = failure
            await until(lambda: rig.health.dependencies["dynamodb"].state == "failing")
            assert rig.build_id == "b-1"
            rig.listing.failure = None
            await until(lambda: rig.health.dependencies["dynamodb"].state == "ok")


async def test_a_start_without_dynamodb_serves_what_was_current(tmp_path: Path) -> None:
    """From what the last run wrote down; a build made current since is taken once it is back."""
    rig = await restarted(tmp_path, {"b-1": ONE})
    async with rig.running():
        await until(lambda: rig.build_id == "b-1")
        assert rig.health.ready
        rig.shelf.add("b-2", TWO)
        rig.listing.models, rig.listing.failure = [model_of("b-2")], None
        await until(lambda: rig.build_id == "b-2")


async def test_what_answered_without_dynamodb_is_dropped_if_it_was_removed(tmp_path: Path) -> None:
    """Once that can be known: with its tombstones gone, deleted products would answer for good."""
    rig = await restarted(tmp_path, {"b-1": ONE})
    async with rig.running():
        await until(lambda: rig.build_id == "b-1")
        rig.shelf.failures["b-2"] = Unavailable("S3 is away still")
        rig.listing.removed.add("b-1")
        rig.listing.models, rig.listing.failure = [model_of("b-2")], None
        await until(lambda: rig.build_id is None)
        with pytest.raises(Unavailable):
            await rig.registry.wanted("m")


async def test_a_broken_note_of_what_was_current_is_passed_over(tmp_path: Path) -> None:
    """The start goes on without it."""
    current_file(tmp_path).parent.mkdir(parents=True)
    current_file(tmp_path).write_bytes(b'[{"model_version": 5}]')
    rig = Rig(tmp_path)
    rig.listing.failure = Unavailable("away")
    async with rig.running():
        await until(lambda: rig.listing.looks > 2)
        assert not rig.health.ready


async def test_versions_of_another_epoch_are_not_served(tmp_path: Path) -> None:
    """After a restore of data the old index is dropped, and the next build is taken."""
    rig = Rig(tmp_path)
    rig.shelf.add("b-1", ONE)
    rig.listing.models = [model_of("b-1")]
    async with rig.running():
        await until(lambda: rig.build_id == "b-1")
        rig.listing.models = [model_of("b-1", epoch=1)]
        await until(lambda: rig.build_id is None)
        with pytest.raises(Unavailable):
            await rig.registry.wanted("m")
        rig.shelf.add("b-2", TWO, epoch=1)
        rig.listing.models = [model_of("b-2", epoch=1)]
        await until(lambda: rig.build_id == "b-2")


async def test_a_version_of_another_epoch_is_not_served_though_its_loading_had_begun(
    tmp_path: Path,
) -> None:
    """The data is restored while it is on its way; not for a moment it answers."""
    rig = Rig(tmp_path)
    rig.shelf.add("b-1", ONE)
    rig.shelf.hanging.add("b-1")
    rig.listing.models = [model_of("b-1")]
    async with rig.running():
        await until(lambda: "b-1" in rig.shelf.asked)
        rig.listing.models = [model_of("b-1", epoch=1)]
        looks = rig.listing.looks
        await until(lambda: rig.listing.looks > looks + 1)
        rig.shelf.hanging.clear()
        rig.shelf.moved.set()
        await until(lambda: "m" in rig.registry.troubles)
        assert "restored" in rig.registry.troubles["m"]
        assert rig.build_id is None


async def test_memory_has_a_budget(tmp_path: Path) -> None:
    """A version that does not fit is not put to use."""
    rig = Rig(tmp_path, bytes_max=10)
    rig.shelf.add("b-1", ONE)
    rig.listing.models = [model_of("b-1")]
    async with rig.running():
        await until(lambda: "b-1" in rig.shelf.asked)
        await asyncio.sleep(0.05)
        assert rig.build_id is None


async def test_a_search_waits_for_the_build_that_shows_its_write(tmp_path: Path) -> None:
    """It is answered at the swap, and refused when none comes in time."""
    rig = Rig(tmp_path)
    rig.shelf.add("b-1", ONE)
    rig.listing.models = [model_of("b-1")]
    async with rig.running():
        await until(lambda: rig.build_id == "b-1")
        assert rig.loaded is not None
        after = Watermark(rig.loaded.manifest.watermark, "e")
        waiting = asyncio.create_task(rig.registry.wanted("m", after))
        rig.shelf.add("b-2", TWO)
        rig.listing.models = [model_of("b-2")]
        assert (await waiting).segment.build_id == "b-2"
        with pytest.raises(NotYetVisible):
            await rig.registry.wanted("m", Watermark("9999-01-01T00:00:00.000000Z"))


async def test_a_model_without_a_build_is_told_apart(tmp_path: Path) -> None:
    """Even when the last look did not show it yet."""
    rig = Rig(tmp_path)
    rig.listing.models = [model_of(None)]
    with pytest.raises(NoIndex):
        await rig.registry.wanted("m")


async def test_long_searches_are_told_from_short_ones(tmp_path: Path) -> None:
    """By what they would cost: the event loop waits for none of the long ones."""
    rig = Rig(tmp_path)
    rig.shelf.add("b-1", ONE)
    rig.listing.models = [model_of("b-1")]
    async with rig.running():
        await until(lambda: rig.loaded is not None)
    assert rig.loaded is not None
    cost = rig.loaded.cost
    assert cost.search_us(1, 10, exact=False) <= INLINE_US_MAX
    assert cost.search_us(1, 10, exact=True) <= INLINE_US_MAX
    assert cost.search_us(256, 30, exact=False) > INLINE_US_MAX
    assert cost.search_us(1, 10, exact=False, excluded=1000) > INLINE_US_MAX
