"""Following what changed since a build: what is read when, and what answers say of it."""

import asyncio
import gc
import weakref
from pathlib import Path

import msgspec
import numpy as np
import pytest

from core.errors import NotYetVisible, Unavailable
from core.models import Watermark
from tests.unit.api.serving.rig import IDS, Rig, ago, until, vector
from tests.unit.api.serving.versions import model_of
from tests.virtual_time import in_virtual_time


@in_virtual_time
async def test_a_version_that_is_coming_gets_what_is_read_meanwhile(tmp_path: Path) -> None:
    """What is deleted while it is prepared is not back with it, whatever the shards show."""
    rig = Rig(tmp_path)
    async with rig.following():
        await rig.polled()
        rig.rows.gate.clear()
        rig.rows.shown = []
        coming = asyncio.create_task(rig.activate("b-2"))
        await until(lambda: len(rig.rows.polls) == 2)
        moment = rig.put("a", None)
        await rig.registry.snapshot("m", Watermark(moment, "a"))
        assert not coming.done()
        rig.rows.gate.set()
        await coming
        assert rig.snapshot.segment.build_id == "b-2"
        assert not rig.has("a")
        assert "a" not in rig.found(vector(ord("a"))).product_ids


@in_virtual_time
async def test_before_the_first_poll_nobody_knows_what_changed(tmp_path: Path) -> None:
    """Though rows that were read are searched already."""
    rig = Rig(tmp_path)
    rig.rows.gate.clear()
    async with rig.following():
        moment = rig.put("new", vector(1))
        snapshot = await rig.registry.snapshot("m", Watermark(moment, "new"))
        assert snapshot.find("new") is not None
        assert snapshot.provenance.fresh is None
        rig.rows.gate.set()
        await rig.polled()
        assert rig.fresh == 1


@in_virtual_time
async def test_without_polls_nobody_knows_what_changed_any_more(tmp_path: Path) -> None:
    """Searches go on, notifications are applied, and a complete poll brings the number back."""
    rig = Rig(tmp_path, poll_s=0.1)
    async with rig.following():
        await rig.polled()
        rig.rows.polls_fail = True
        await until(lambda: rig.fresh is None)
        rig.put("new", vector(1))
        rig.notifier.send("new")
        await until(lambda: rig.has("new"))
        assert rig.fresh is None
        rig.rows.polls_fail = False
        await rig.polled()
        assert rig.fresh == 1


@in_virtual_time
async def test_a_poll_that_hangs_tells_no_more_than_none(tmp_path: Path) -> None:
    """It is the end of a poll that counts."""
    rig = Rig(tmp_path, poll_s=0.1)
    async with rig.following():
        await rig.polled()
        rig.rows.gate.clear()
        await until(lambda: rig.fresh is None)


@in_virtual_time
async def test_the_row_of_a_token_is_read_until_it_is_as_the_write_left_it(tmp_path: Path) -> None:
    """A later time of that row may be of an earlier write, by a clock that is ahead."""
    rig = Rig(tmp_path)
    async with rig.following():
        ahead = rig.put("a", vector(1), ago(-20))
        await rig.registry.snapshot("m", Watermark(ahead, "a"))
        behind = rig.put("a", None, ago(10))
        snapshot = rig.snapshot
        assert snapshot.reflects(Watermark(ahead, "a"))
        assert not snapshot.reflects(Watermark(behind, "a"))
        snapshot = await rig.registry.snapshot("m", Watermark(behind, "a"))
        assert snapshot.find("a") is None


@in_virtual_time
async def test_a_batch_by_a_clock_that_is_behind_is_found(tmp_path: Path) -> None:
    """Its rows are older than the last poll, which the shards did not show them to."""
    rig = Rig(tmp_path)
    async with rig.following():
        await rig.polled()
        moment = rig.put("new", vector(1), ago(30))
        snapshot = await rig.registry.snapshot("m", Watermark(moment))
        assert snapshot.find("new") is not None


@in_virtual_time
async def test_a_poll_counts_from_its_beginning(tmp_path: Path) -> None:
    """What was written while it was made may not be in it."""
    rig = Rig(tmp_path, poll_overlap_s=0.01)
    rig.rows.gate.clear()
    rig.rows.shown = []
    async with rig.following():
        await until(lambda: len(rig.rows.polls) == 1)
        await asyncio.sleep(0.05)
        moment = rig.put("new", vector(1))
        await asyncio.sleep(0.05)
        rig.rows.gate.set()
        await rig.polled()
        assert not rig.snapshot.reflects(Watermark(moment))
        rig.rows.shown = None
        snapshot = await rig.registry.snapshot("m", Watermark(moment))
        assert snapshot.find("new") is not None


@in_virtual_time
async def test_all_who_wait_share_a_look_and_polls_are_few(tmp_path: Path) -> None:
    """Batch tokens of now, as fast as four clients can ask."""
    rig = Rig(tmp_path)
    async with rig.following():
        await rig.polled()
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def client() -> None:
            while loop.time() < began + 1.2:
                await rig.registry.snapshot("m", Watermark(ago(0)))

        await asyncio.gather(*(client() for _ in range(4)))
        assert len(rig.rows.polls) <= 2 + (loop.time() - began) / 0.5


@in_virtual_time
async def test_a_write_of_nobodys_clock_is_not_waited_for(tmp_path: Path) -> None:
    """Though its row can be read, and the shards can."""
    rig = Rig(tmp_path)
    async with rig.following():
        for product_id in ("a", None):
            with pytest.raises(NotYetVisible):
                await rig.registry.snapshot("m", Watermark(ago(-120), product_id))
        assert rig.rows.reads == 0


@in_virtual_time
async def test_notifications_that_begin_again_have_the_shards_polled(tmp_path: Path) -> None:
    """What changed in the gap was not notified."""
    rig = Rig(tmp_path)
    async with rig.following():
        await rig.polled()
        rig.put("new", vector(1))
        rig.notifier.queue.put_nowait(None)
        await until(lambda: rig.has("new"))


@in_virtual_time
async def test_notifications_without_room_have_the_shards_polled(tmp_path: Path) -> None:
    """More rows than may wait changed at once."""
    rig = Rig(tmp_path, delta_rows_hard=3)
    async with rig.following():
        await rig.polled()
        rig.put("new", vector(1))
        rig.notifier.send("x1", "x2", "x3", "new")
        await until(lambda: rig.has("new"))


@in_virtual_time
async def test_rows_whose_reading_failed_are_read_again(tmp_path: Path) -> None:
    """The shards show none of them yet."""
    rig = Rig(tmp_path)
    rig.rows.shown = []
    async with rig.following():
        await rig.polled()
        rig.rows.reads_fail = True
        rig.put("new", vector(1))
        rig.notifier.send("new")
        await until(lambda: rig.rows.reads > 0)
        rig.rows.reads_fail = False
        await until(lambda: rig.has("new"))


@pytest.mark.parametrize("pinned", [False, True])
@in_virtual_time
async def test_no_build_is_requested_where_the_current_one_was_just_pinned(
    tmp_path: Path,
    pinned: bool,  # noqa: FBT001
) -> None:
    """The list of model versions does not show it yet: the model version itself is asked."""
    rig = Rig(tmp_path, delta_rows_soft=1)
    async with rig.following():
        rig.models.models = [msgspec.structs.replace(model_of("b-1"), pinned=pinned)]
        for name in ("x", "y"):
            rig.put(name, vector(ord(name)))
        rig.notifier.send("x", "y")
        await until(lambda: rig.models.reads == 1)
        await asyncio.sleep(0.02)
        assert len(rig.requests.requested) == (not pinned)


@pytest.mark.parametrize("reading", [False, True])
@in_virtual_time
async def test_a_model_version_dropped_while_a_version_is_coming_stays_so(
    tmp_path: Path,
    reading: bool,  # noqa: FBT001
) -> None:
    """Its data was restored: nothing of before is put to use, and nobody waits for ever."""
    rig = Rig(tmp_path)
    async with rig.following():
        await rig.polled()
        rig.rows.reads_fail = True
        if reading:
            rig.put("a", vector(1))
        else:
            rig.rows.gate.clear()
        coming = asyncio.create_task(rig.activate("b-2"))
        await until(lambda: len(rig.rows.polls) == 2)
        await asyncio.sleep(0.02)
        asking = asyncio.create_task(rig.registry.snapshot("m", Watermark(ago(0), "a")))
        await asyncio.sleep(0.02)
        rig.registry.drop("m")
        rig.rows.gate.set()
        with pytest.raises(Unavailable):
            await asyncio.wait_for(coming, 5)
        assert rig.registry.loaded == {}
        with pytest.raises(NotYetVisible):
            await asking
        rig.rows.reads_fail = False
        await rig.activate("b-2")
        await rig.polled()
        assert rig.fresh == int(reading)


@in_virtual_time
async def test_a_version_that_is_about_to_answer_does_not_once_it_was_dropped(
    tmp_path: Path,
) -> None:
    """Not even where there is nothing to be read before it does."""
    rig = Rig(tmp_path)
    rig.rows.gate.clear()
    async with rig.following():
        moment = rig.put("new", vector(1))
        await rig.registry.snapshot("m", Watermark(moment, "new"))
        coming = asyncio.create_task(rig.activate("b-2"))
        await asyncio.sleep(0)
        rig.registry.drop("m")
        with pytest.raises(Unavailable):
            await coming
        assert rig.registry.loaded == {}


@in_virtual_time
async def test_deletions_of_what_the_index_never_had_count_for_nothing(tmp_path: Path) -> None:
    """Nor are they read."""
    rig = Rig(tmp_path, delta_rows_hard=3)
    for number in range(20):
        rig.put(f"t{number}", None)
    rig.put("a", None)
    async with rig.following():
        await rig.polled()
        assert rig.fresh == 1
        assert rig.rows.reads == 1


@in_virtual_time
async def test_a_row_both_notified_and_shown_counts_once(tmp_path: Path) -> None:
    """Four of five, though a poll had found them before their notifications came."""
    rig = Rig(tmp_path, delta_rows_hard=5)
    names = ["w", "x", "y", "z"]
    rig.rows.shown = [names, ["a"]]
    rig.rows.gate.clear()
    for name in (*names, "a"):
        rig.put(name, vector(ord(name)))
    async with rig.following():
        await until(lambda: len(rig.rows.polls) == 1)
        rig.notifier.send(*names)
        await until(lambda: rig.has("z"))
        rig.rows.gate.set()
        await rig.polled()
        assert rig.fresh == 4


@pytest.mark.parametrize("back", [False, True])
@in_virtual_time
async def test_past_the_hard_limit_nothing_deleted_comes_back(
    tmp_path: Path,
    back: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """Neither at a start, nor with an earlier build; what is deleted later goes too."""
    rig = Rig(tmp_path, delta_rows_hard=3)
    rig.put("a", None)
    rig.put("b", vector(1))
    if not back:
        for name in ("x", "y", "z"):
            rig.put(name, vector(ord(name)))
    async with rig.following():
        if back:
            await rig.polled()
            _only(rig, "bcdef")
            for name in ("x", "y", "z"):
                rig.put(name, vector(ord(name)))
            await rig.activate("b-0")
            assert rig.snapshot.segment.build_id == "b-0"
            _only(rig, "bcdef")
        else:
            await until(lambda: rig.rows.polls_ended == 1)
        await until(lambda: not rig.has("a"))
        _only(rig, "bcdef")
        assert rig.fresh is None
        found = rig.found(vector(ord("b")))
        assert found.product_ids[0] == "b"  # overwritten, and found in the form that the index has
        rig.put("c", None)
        rig.notifier.send("b", "c", "x")
        await until(lambda: not rig.has("c"))
        _only(rig, "bdef")
        rig.put("a", vector(ord("a")))
        rig.put("e", None)
        rig.notifier.queue.put_nowait(None)
        await until(lambda: not rig.has("e"))
        _only(rig, "abdf")
        assert rig.fresh is None
        token = Watermark(rig.put("d", vector(7)), "d")
        with pytest.raises(NotYetVisible):
            await rig.registry.snapshot("m", token)


def _only(rig: Rig, names: str) -> None:
    """Checks that these products answer, and no others, however it is asked."""
    snapshot = rig.snapshot
    for name in IDS:
        for exact in (False, True):
            found = rig.found(vector(ord(name)), exact=exact)
            assert set(found.product_ids) == set(names)
        ref = snapshot.find(name)
        assert (ref is not None) == (name in names)
        if ref is not None:
            near = snapshot.matrix_neighbors(ref, 5) or snapshot.search_near(ref, 5)
            assert set(near.product_ids) == set(names) - {name}


@in_virtual_time
async def test_a_dropped_index_leaves_memory_at_once(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Without a garbage collection: files of a deleted model version wait for that."""
    rig = Rig(tmp_path)
    request.addfinalizer(gc.enable)
    async with rig.following():
        await rig.polled()
        gc.disable()
        index = weakref.ref(rig.registry.loaded["m"])
        rig.registry.drop("m")
        await until(lambda: index() is None)


@in_virtual_time
async def test_an_earlier_build_brings_nothing_back_where_no_poll_was_complete(
    tmp_path: Path,
) -> None:
    """What a later build had without a product is not known from notifications alone."""
    rig = Rig(tmp_path)
    rig.rows.polls_fail = True
    async with rig.following():
        rig.put("a", None)
        later = IDS[1:]
        rows = np.stack([vector(ord(name)) for name in later])
        rig.versions.add("b-2", later, rows=rows, watermark=ago(0))
        await rig.activate("b-2")
        assert not rig.has("a")
        promoted = asyncio.create_task(rig.activate("b-1"))
        await asyncio.sleep(20)
        assert not rig.has("a")
        rig.rows.polls_fail = False
        await promoted
        assert rig.build_id == "b-1"
        assert not rig.has("a")
