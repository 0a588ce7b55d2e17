"""Following what changed since a build: what is read when, and what answers say of it."""

import asyncio
import gc
import weakref
from pathlib import Path

import msgspec
import pytest

from core.errors import NotYetVisible, Unavailable
from core.models import Watermark, now, timestamp
from tests.unit.api.serving.replica_rig import IDS, Rig, ago, until, vector


async def test_a_version_that_is_coming_gets_what_is_read_meanwhile(tmp_path: Path) -> None:
    """What is deleted while it is prepared is not back with it, whatever the shards show."""
    rig = Rig(tmp_path)
    async with rig.running():
        await rig.looked()
        rig.table.gate.clear()
        rig.table.shown = []
        coming = asyncio.create_task(rig.adopt("b-2"))
        await until(lambda: _is(len(rig.table.looks) == 2))
        moment = rig.table.put("a", None)
        await rig.registry.wanted("m", Watermark(moment, "a"))
        assert not coming.done()
        rig.table.gate.set()
        await coming
        assert (await rig.view()).segment.build_id == "b-2"
        assert not await rig.has("a")
        assert "a" not in (await rig.found(vector(ord("a")))).product_ids


async def test_before_the_first_look_nobody_knows_what_changed(tmp_path: Path) -> None:
    """Though rows that were read are searched already."""
    rig = Rig(tmp_path)
    rig.table.gate.clear()
    async with rig.running():
        moment = rig.table.put("new", vector(1))
        view = await rig.registry.wanted("m", Watermark(moment, "new"))
        assert view.find("new") is not None
        assert view.provenance.fresh is None
        rig.table.gate.set()
        await rig.looked()
        assert await rig.fresh() == 1


async def test_without_looks_nobody_knows_what_changed_any_more(tmp_path: Path) -> None:
    """Searches go on, hints are applied, and the number is back with the first whole look."""
    rig = Rig(tmp_path, poll_s=0.1)
    async with rig.running():
        await rig.looked()
        rig.table.looks_fail = True

        async def unknown() -> bool:
            return await rig.fresh() is None

        await until(unknown)
        rig.table.put("new", vector(1))
        rig.notifier.send("new")
        await until(lambda: rig.has("new"))
        assert await rig.fresh() is None
        rig.table.looks_fail = False
        await rig.looked()
        assert await rig.fresh() == 1


async def test_a_look_that_hangs_tells_no_more_than_none(tmp_path: Path) -> None:
    """It is the end of a look that counts."""
    rig = Rig(tmp_path, poll_s=0.1)
    async with rig.running():
        await rig.looked()
        rig.table.gate.clear()

        async def unknown() -> bool:
            return await rig.fresh() is None

        await until(unknown)


async def test_the_row_of_a_token_is_read_until_it_is_as_the_write_left_it(tmp_path: Path) -> None:
    """A later time of that row may be of an earlier write, by a clock that is ahead."""
    rig = Rig(tmp_path)
    async with rig.running():
        ahead = rig.table.put("a", vector(1), ago(-20))
        await rig.registry.wanted("m", Watermark(ahead, "a"))
        behind = rig.table.put("a", None, ago(10))
        view = await rig.view()
        assert view.reflects(Watermark(ahead, "a"))
        assert not view.reflects(Watermark(behind, "a"))
        view = await rig.registry.wanted("m", Watermark(behind, "a"))
        assert view.find("a") is None


async def test_a_batch_by_a_clock_that_is_behind_is_found(tmp_path: Path) -> None:
    """Its rows are older than the last look, which the shards did not show them to."""
    rig = Rig(tmp_path)
    async with rig.running():
        await rig.looked()
        moment = rig.table.put("new", vector(1), ago(30))
        view = await rig.registry.wanted("m", Watermark(moment))
        assert view.find("new") is not None


async def test_a_look_counts_from_its_beginning(tmp_path: Path) -> None:
    """What was written while it was made may not be in it."""
    rig = Rig(tmp_path, poll_overlap_s=0.01)
    rig.table.gate.clear()
    rig.table.shown = []
    async with rig.running():
        await until(lambda: _is(len(rig.table.looks) == 1))
        await asyncio.sleep(0.05)
        moment = rig.table.put("new", vector(1))
        await asyncio.sleep(0.05)
        rig.table.gate.set()
        await rig.looked()
        assert not (await rig.view()).reflects(Watermark(moment))
        rig.table.shown = None
        view = await rig.registry.wanted("m", Watermark(moment))
        assert view.find("new") is not None


async def test_all_who_wait_share_a_look_and_looks_are_few(tmp_path: Path) -> None:
    """Batch tokens of now, as fast as four clients can ask."""
    rig = Rig(tmp_path)
    async with rig.running():
        await rig.looked()
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def client() -> None:
            while loop.time() < began + 1.2:
                await rig.registry.wanted("m", Watermark(timestamp(now())))

        await asyncio.gather(*(client() for _ in range(4)))
        assert len(rig.table.looks) <= 2 + (loop.time() - began) / 0.5


async def test_a_write_of_nobodys_clock_is_not_waited_for(tmp_path: Path) -> None:
    """Though its row can be read, and the shards can."""
    rig = Rig(tmp_path)
    async with rig.running():
        for product_id in ("a", None):
            with pytest.raises(NotYetVisible):
                await rig.registry.wanted("m", Watermark(ago(-120), product_id))
        assert rig.table.reads == 0


async def test_hints_that_begin_again_have_the_shards_looked_through(tmp_path: Path) -> None:
    """What changed in the gap had a hint that nobody heard."""
    rig = Rig(tmp_path)
    async with rig.running():
        await rig.looked()
        rig.table.put("new", vector(1))
        rig.notifier.waiting.put_nowait(None)
        await until(lambda: rig.has("new"))


async def test_hints_without_room_have_the_shards_looked_through(tmp_path: Path) -> None:
    """More rows than may wait changed at once."""
    rig = Rig(tmp_path, delta_rows_hard=3)
    async with rig.running():
        await rig.looked()
        rig.table.put("new", vector(1))
        rig.notifier.send("x1", "x2", "x3", "new")
        await until(lambda: rig.has("new"))


async def test_rows_whose_reading_failed_are_read_again(tmp_path: Path) -> None:
    """The shards show none of them yet."""
    rig = Rig(tmp_path)
    rig.table.shown = []
    async with rig.running():
        await rig.looked()
        rig.table.reads_fail = True
        rig.table.put("new", vector(1))
        rig.notifier.send("new")
        await until(lambda: _is(rig.table.reads > 0))
        rig.table.reads_fail = False
        await until(lambda: rig.has("new"))


@pytest.mark.parametrize("pinned", [False, True])
async def test_no_build_is_requested_where_the_current_one_was_just_pinned(
    tmp_path: Path,
    pinned: bool,  # noqa: FBT001
) -> None:
    """The list of model versions does not show it yet: the model version itself is asked."""
    rig = Rig(tmp_path, delta_rows_soft=1)
    rig.asked.model = msgspec.structs.replace(rig.asked.model, pinned=pinned)
    async with rig.running():
        for name in ("x", "y"):
            rig.table.put(name, vector(ord(name)))
        rig.notifier.send("x", "y")
        await until(lambda: _is(rig.asked.looked_up == 1))
        await asyncio.sleep(0.02)
        assert rig.asked.builds == (not pinned)


@pytest.mark.parametrize("reading", [False, True])
async def test_a_model_version_dropped_while_a_version_is_coming_stays_so(
    tmp_path: Path,
    reading: bool,  # noqa: FBT001
) -> None:
    """Its data was restored: nothing of before is put to use, and nobody waits for ever."""
    rig = Rig(tmp_path)
    async with rig.running():
        await rig.looked()
        rig.table.reads_fail = True
        if reading:
            rig.table.put("a", vector(1))
        else:
            rig.table.gate.clear()
        coming = asyncio.create_task(rig.adopt("b-2"))
        await until(lambda: _is(len(rig.table.looks) == 2))
        await asyncio.sleep(0.02)
        asking = asyncio.create_task(rig.registry.wanted("m", Watermark(ago(0), "a")))
        await asyncio.sleep(0.02)
        rig.registry.drop("m")
        rig.freshness.forget("m")
        rig.table.gate.set()
        with pytest.raises(Unavailable):
            await asyncio.wait_for(coming, 5)
        assert rig.registry.loaded == {}
        with pytest.raises(NotYetVisible):
            await asking
        rig.table.reads_fail = False
        await rig.adopt("b-2")
        await rig.looked()
        assert await rig.fresh() == int(reading)


async def test_a_version_that_is_about_to_answer_does_not_once_it_was_dropped(
    tmp_path: Path,
) -> None:
    """Not even where there is nothing to be read before it does."""
    rig = Rig(tmp_path)
    rig.table.gate.clear()
    async with rig.running():
        moment = rig.table.put("new", vector(1))
        await rig.registry.wanted("m", Watermark(moment, "new"))
        coming = asyncio.create_task(rig.adopt("b-2"))
        await asyncio.sleep(0)
        rig.registry.drop("m")
        rig.freshness.forget("m")
        with pytest.raises(Unavailable):
            await coming
        assert rig.registry.loaded == {}


async def test_deletions_of_what_the_index_never_had_count_for_nothing(tmp_path: Path) -> None:
    """Nor are they read."""
    rig = Rig(tmp_path, delta_rows_hard=3)
    for number in range(20):
        rig.table.put(f"t{number}", None)
    rig.table.put("a", None)
    async with rig.running():
        await rig.looked()
        assert await rig.fresh() == 1
        assert rig.table.reads == 1


async def test_a_row_both_hinted_and_shown_counts_once(tmp_path: Path) -> None:
    """Four of five, though a look had noted them before their hints were heard."""
    rig = Rig(tmp_path, delta_rows_hard=5)
    names = ["w", "x", "y", "z"]
    rig.table.shown = [names, ["a"]]
    rig.table.gate.clear()
    for name in (*names, "a"):
        rig.table.put(name, vector(ord(name)))
    async with rig.running():
        await until(lambda: _is(len(rig.table.looks) == 1))
        rig.notifier.send(*names)
        await until(lambda: rig.has("z"))
        rig.table.gate.set()
        await rig.looked()
        assert await rig.fresh() == 4


@pytest.mark.parametrize("back", [False, True])
async def test_past_the_hard_limit_nothing_deleted_comes_back(
    tmp_path: Path,
    back: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """Neither at a start, nor with an earlier build; what is deleted later goes too."""
    rig = Rig(tmp_path, delta_rows_hard=3)
    rig.table.put("a", None)
    rig.table.put("b", vector(1))
    if not back:
        for name in ("x", "y", "z"):
            rig.table.put(name, vector(ord(name)))
    async with rig.running():
        if back:
            await rig.looked()
            await _only(rig, "bcdef")
            for name in ("x", "y", "z"):
                rig.table.put(name, vector(ord(name)))
            await rig.adopt("b-0")
            assert (await rig.view()).segment.build_id == "b-0"
            await _only(rig, "bcdef")
        else:
            await until(lambda: _is(rig.table.ended == 1))
        await until(lambda: _lacks(rig, "a"))
        await _only(rig, "bcdef")
        assert await rig.fresh() is None
        found = await rig.found(vector(ord("b")))
        assert found.product_ids[0] == "b"  # overwritten, and found in the form that the index has
        rig.table.put("c", None)
        rig.notifier.send("b", "c", "x")
        await until(lambda: _lacks(rig, "c"))
        await _only(rig, "bdef")
        rig.table.put("a", vector(ord("a")))
        rig.table.put("e", None)
        rig.notifier.waiting.put_nowait(None)
        await until(lambda: _lacks(rig, "e"))
        await _only(rig, "abdf")
        assert await rig.fresh() is None
        token = Watermark(rig.table.put("d", vector(7)), "d")
        with pytest.raises(NotYetVisible):
            await rig.registry.wanted("m", token)


async def _only(rig: Rig, names: str) -> None:
    """Checks that these products answer, and no others, however it is asked."""
    view = await rig.view()
    for name in IDS:
        for exact in (False, True):
            found = await rig.found(vector(ord(name)), exact=exact)
            assert set(found.product_ids) == set(names)
        ref = view.find(name)
        assert (ref is not None) == (name in names)
        if ref is not None:
            near = view.matrix_neighbors(ref, 5) or view.search_near(ref, 5)
            assert set(near.product_ids) == set(names) - {name}


async def _lacks(rig: Rig, product_id: str) -> bool:
    return not await rig.has(product_id)


async def _is(holds: bool) -> bool:  # noqa: FBT001
    return holds


async def test_a_dropped_index_leaves_memory_at_once(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Without a garbage collection: files of a deleted model version wait for that."""
    rig = Rig(tmp_path)
    request.addfinalizer(gc.enable)
    async with rig.running():
        await rig.looked()
        gc.disable()
        index = weakref.ref(rig.registry.loaded["m"])
        rig.registry.drop("m")
        await until(lambda: _is(index() is None))
