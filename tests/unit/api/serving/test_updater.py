"""Following the current builds: what is put to use, and what is not."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from api.serving.cost import INLINE_US_MAX
from api.serving.snapshot import RowRef
from core.errors import Corrupt, K9Error, NoIndex, NotFound, NotYetVisible, Unavailable
from core.models import Watermark
from core.names import directory_of
from core.settings import Settings
from tests.unit.api.serving.rig import Rig, until
from tests.unit.api.serving.versions import damaged, model_of
from tests.virtual_time import in_virtual_time

ONE, TWO = ["a", "b", "c", "d"], ["a", "b", "c", "d", "e"]


def current_file(root: Path) -> Path:
    """Where a refresher writes down what is current."""
    return directory_of(root / "cache", Settings().environment) / "current.json"


async def restarted(root: Path, builds: dict[str, list[str]]) -> Rig:
    """A start without DynamoDB, after a run in which the last of these builds was current."""
    before = Rig(root)
    for build_id, ids in builds.items():
        before.versions.add(build_id, ids)
    current = list(builds)[-1]
    before.models.models = [model_of(current)]
    async with before.updating():
        await until(lambda: before.build_id == current)
        await until(current_file(root).exists)
    rig = Rig(root)
    rig.versions.manifests = before.versions.manifests
    rig.versions.cached_builds = before.versions.cached_builds
    rig.models.failure = Unavailable("away")
    return rig


@in_virtual_time
async def test_a_new_build_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    """And a request that has the old one keeps it to its end."""
    rig = Rig(tmp_path)
    rig.versions.add("b-1", ONE)
    rig.versions.add("b-2", TWO)
    rig.models.models = [model_of("b-1")]
    async with rig.updating():
        await until(lambda: rig.build_id == "b-1")
        old = await rig.registry.snapshot("m")
        rig.models.models = [model_of("b-2")]
        await until(lambda: rig.build_id == "b-2")
        assert old.find("e") is None
        assert len(old.search_near(RowRef(0), 10).product_ids) == 3
        assert (await rig.registry.snapshot("m")).find("e") is not None
        await asyncio.sleep(0.05)
        assert rig.versions.downloads == ["b-1", "b-2"]


@in_virtual_time
async def test_a_bad_version_is_refused_and_the_old_one_serves_on(tmp_path: Path) -> None:
    """It is tried again with backoff, and not at each update."""
    rig = Rig(tmp_path)
    rig.versions.add("b-1", ONE)
    rig.versions.add("b-2", TWO)
    rig.versions.manifests["b-2"] = damaged(rig.versions.manifests["b-2"])
    rig.models.models = [model_of("b-1")]
    async with rig.updating():
        await until(lambda: rig.build_id == "b-1")
        rig.models.models = [model_of("b-2")]
        await until(lambda: "b-2" in rig.versions.downloads)
        await asyncio.sleep(0.2)
        assert rig.build_id == "b-1"
        assert rig.versions.downloads.count("b-2") == 1
        assert rig.health.ready
        rig.versions.add("b-3", TWO)
        rig.models.models = [model_of("b-3")]
        await until(lambda: rig.build_id == "b-3")


@pytest.mark.parametrize("lasting", [Corrupt("another digest"), NotFound("gone")])
@in_virtual_time
async def test_readiness_waits_for_what_may_yet_come_and_not_for_what_is_bad(
    tmp_path: Path, lasting: K9Error
) -> None:
    """S3 away: not ready. A version that is bad, or gone: a rebuild needs a way in."""
    rig = Rig(tmp_path)
    rig.versions.failures["b-1"] = Unavailable("S3 does not answer")
    rig.versions.failures["b-9"] = lasting
    rig.models.models = [model_of("b-1")]
    async with rig.updating():
        await until(lambda: rig.health.dependencies["s3"].state == "failing")
        assert not rig.health.ready
        rig.models.models = [model_of("b-9")]
        await until(lambda: rig.health.ready)


@in_virtual_time
async def test_readiness_does_not_wait_for_a_first_download_where_something_answers(
    tmp_path: Path,
) -> None:
    """S3 may hang; what is on this disk is waited for, and not a download beside it."""
    rig = Rig(tmp_path)
    rig.versions.add("b-1", ONE)
    rig.versions.hanging.add("b-2")
    rig.models.models = [msgspec.structs.replace(model_of("b-2"), model_version="other")]
    async with rig.updating():
        await until(lambda: "b-2" in rig.versions.downloads)
        await asyncio.sleep(0.05)
        assert not rig.health.ready  # a first download is all there is to wait for
        rig.versions.cached_builds.add("b-1")
        rig.models.models = [*rig.models.models, model_of("b-1")]
        await until(lambda: rig.health.ready)
        assert rig.build_id == "b-1"
        assert "other" not in rig.registry.loaded


@pytest.mark.parametrize("failure", [NotFound("gone"), Corrupt("bad"), Unavailable("away")])
@in_virtual_time
async def test_a_start_without_the_current_version_serves_the_one_before(
    tmp_path: Path, failure: K9Error
) -> None:
    """While it is on this disk; readiness tells, and what is current is taken once it is there."""
    rig = Rig(tmp_path)
    rig.versions.add("b-1", ONE)
    rig.versions.cached_builds.add("b-1")
    rig.versions.failures["b-2"] = failure
    rig.models.models = [model_of("b-2")]
    async with rig.updating():
        await until(lambda: rig.build_id == "b-1" and "m" in rig.registry.troubles)
        assert rig.health.ready
        assert "b-2" in rig.registry.troubles["m"]
        s3 = rig.health.dependencies["s3"].state
        assert s3 == ("failing" if isinstance(failure, Unavailable) else "ok")
        rig.versions.add("b-3", TWO)
        rig.models.models = [model_of("b-3")]
        await until(lambda: rig.build_id == "b-3")
        assert rig.registry.troubles == {}


@in_virtual_time
async def test_a_version_that_is_not_kept_any_more_answers_for_none(tmp_path: Path) -> None:
    """What was deleted since may have left no trace, and would be back."""
    rig = Rig(tmp_path)
    rig.versions.add("b-1", ONE)
    rig.versions.cached_builds.add("b-1")
    rig.versions.failures["b-2"] = NotFound("gone")
    rig.models.models = [model_of("b-2")]
    rig.builds.removed.add("b-1")
    async with rig.updating():
        await until(lambda: "m" in rig.registry.troubles)
        with pytest.raises(Unavailable, match=r"gone from S3.*k9 rebuild m"):
            await rig.registry.snapshot("m")
        assert rig.build_id is None


@in_virtual_time
async def test_going_back_to_what_answers_ends_the_trouble(tmp_path: Path) -> None:
    """The version that serves on is made current again: nothing is left to tell."""
    rig = Rig(tmp_path)
    rig.versions.add("b-1", ONE)
    rig.versions.failures["b-9"] = Corrupt("another digest")
    rig.models.models = [model_of("b-1")]
    async with rig.updating():
        await until(lambda: rig.build_id == "b-1")
        rig.models.models = [model_of("b-9")]
        await until(lambda: "damaged" in rig.registry.troubles.get("m", ""))
        rig.models.models = [model_of("b-1")]
        await until(lambda: rig.registry.troubles == {})


@in_virtual_time
async def test_a_process_without_any_model_is_ready(tmp_path: Path) -> None:
    """There is nothing that it could not answer."""
    rig = Rig(tmp_path)
    async with rig.updating():
        await until(lambda: rig.health.ready)
        rig.health.draining = True
        assert not rig.health.ready


@in_virtual_time
async def test_dynamodb_away_changes_nothing_that_is_loaded(tmp_path: Path) -> None:
    """Not even an error that nobody expected ends the task."""
    rig = Rig(tmp_path)
    rig.versions.add("b-1", ONE)
    rig.models.models = [model_of("b-1")]
    async with rig.updating():
        await until(lambda: rig.build_id == "b-1")
        for failure in (Unavailable("away"), ZeroDivisionError("a bug")):
            rig.models.failure = failure
            await until(lambda: rig.health.dependencies["dynamodb"].state == "failing")
            assert rig.build_id == "b-1"
            rig.models.failure = None
            await until(lambda: rig.health.dependencies["dynamodb"].state == "ok")


@in_virtual_time
async def test_a_start_without_dynamodb_serves_what_was_current(tmp_path: Path) -> None:
    """From what the last run wrote down; a build made current since is taken once it is back."""
    rig = await restarted(tmp_path, {"b-1": ONE})
    async with rig.updating():
        await until(lambda: rig.build_id == "b-1")
        assert rig.health.ready
        rig.versions.add("b-2", TWO)
        rig.models.models, rig.models.failure = [model_of("b-2")], None
        await until(lambda: rig.build_id == "b-2")


@in_virtual_time
async def test_what_answered_without_dynamodb_is_dropped_if_it_was_removed(tmp_path: Path) -> None:
    """Once that can be known: with its tombstones gone, deleted products would answer for good."""
    rig = await restarted(tmp_path, {"b-1": ONE})
    async with rig.updating():
        await until(lambda: rig.build_id == "b-1")
        rig.versions.failures["b-2"] = Unavailable("S3 is away still")
        rig.builds.removed.add("b-1")
        rig.models.models, rig.models.failure = [model_of("b-2")], None
        await until(lambda: rig.build_id is None)
        with pytest.raises(Unavailable):
            await rig.registry.snapshot("m")


@in_virtual_time
async def test_a_broken_note_of_what_was_current_is_passed_over(tmp_path: Path) -> None:
    """The start goes on without it."""
    current_file(tmp_path).parent.mkdir(parents=True)
    current_file(tmp_path).write_bytes(b'[{"model_version": 5}]')
    rig = Rig(tmp_path)
    rig.models.failure = Unavailable("away")
    async with rig.updating():
        await until(lambda: rig.models.lists > 2)
        assert not rig.health.ready


@in_virtual_time
async def test_versions_of_another_epoch_are_not_served(tmp_path: Path) -> None:
    """After a restore of data the old index is dropped, and the next build is taken."""
    rig = Rig(tmp_path)
    rig.versions.add("b-1", ONE)
    rig.models.models = [model_of("b-1")]
    async with rig.updating():
        await until(lambda: rig.build_id == "b-1")
        rig.models.models = [model_of("b-1", epoch=1)]
        await until(lambda: rig.build_id is None)
        with pytest.raises(Unavailable):
            await rig.registry.snapshot("m")
        rig.versions.add("b-2", TWO, epoch=1)
        rig.models.models = [model_of("b-2", epoch=1)]
        await until(lambda: rig.build_id == "b-2")


@in_virtual_time
async def test_a_version_of_another_epoch_is_not_served_though_its_loading_had_begun(
    tmp_path: Path,
) -> None:
    """The data is restored while it is on its way; not for a moment it answers."""
    rig = Rig(tmp_path)
    rig.versions.add("b-1", ONE)
    rig.versions.hanging.add("b-1")
    rig.models.models = [model_of("b-1")]
    async with rig.updating():
        await until(lambda: "b-1" in rig.versions.downloads)
        rig.models.models = [model_of("b-1", epoch=1)]
        lists = rig.models.lists
        await until(lambda: rig.models.lists > lists + 1)
        rig.versions.hanging.clear()
        rig.versions.moved.set()
        await until(lambda: "m" in rig.registry.troubles)
        assert "restored" in rig.registry.troubles["m"]
        assert rig.build_id is None


@in_virtual_time
async def test_memory_has_a_budget(tmp_path: Path) -> None:
    """A version that does not fit is not put to use."""
    rig = Rig(tmp_path, bytes_max=10)
    rig.versions.add("b-1", ONE)
    rig.models.models = [model_of("b-1")]
    async with rig.updating():
        await until(lambda: "b-1" in rig.versions.downloads)
        await asyncio.sleep(0.05)
        assert rig.build_id is None


@in_virtual_time
async def test_a_search_waits_for_the_build_that_shows_its_write(tmp_path: Path) -> None:
    """It is answered at the swap, and refused when none comes in time."""
    rig = Rig(tmp_path)
    rig.versions.add("b-1", ONE)
    rig.models.models = [model_of("b-1")]
    async with rig.updating():
        await until(lambda: rig.build_id == "b-1")
        assert rig.segment is not None
        after = Watermark(rig.segment.manifest.watermark, "e")
        waiting = asyncio.create_task(rig.registry.snapshot("m", after))
        rig.versions.add("b-2", TWO)
        rig.models.models = [model_of("b-2")]
        assert (await waiting).segment.build_id == "b-2"
        with pytest.raises(NotYetVisible):
            await rig.registry.snapshot("m", Watermark("9999-01-01T00:00:00.000000Z"))


@in_virtual_time
async def test_a_model_without_a_build_is_told_apart(tmp_path: Path) -> None:
    """Even when the last list did not show it yet."""
    rig = Rig(tmp_path)
    rig.models.models = [model_of(None)]
    with pytest.raises(NoIndex):
        await rig.registry.snapshot("m")


@in_virtual_time
async def test_long_searches_are_told_from_short_ones(tmp_path: Path) -> None:
    """By what they would cost: the event loop waits for none of the long ones."""
    rig = Rig(tmp_path)
    rig.versions.add("b-1", ONE)
    rig.models.models = [model_of("b-1")]
    async with rig.updating():
        await until(lambda: rig.segment is not None)
        assert rig.segment is not None
        cost = rig.segment.cost
    assert cost.search_us(1, 10, exact=False) <= INLINE_US_MAX
    assert cost.search_us(1, 10, exact=True) <= INLINE_US_MAX
    assert cost.search_us(256, 30, exact=False) > INLINE_US_MAX
    assert cost.search_us(1, 10, exact=False, excluded=1000) > INLINE_US_MAX
