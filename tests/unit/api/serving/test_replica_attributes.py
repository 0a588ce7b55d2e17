"""Following changed attributes: by notifications, by polls, and over to the next version."""

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from api.serving.snapshot import Snapshot
from core.errors import NotYetVisible
from core.models import Watermark
from tests.unit.api.serving.rig import IDS, Rig, ago, until, vector
from tests.virtual_time import in_virtual_time


class Shop(Rig):
    """Serving of a model version with attributes, whose products are in the table."""

    def __init__(self, root: Path, **serving: Any) -> None:
        super().__init__(root, **serving)
        for name in IDS:
            self.put(name, vector(ord(name)), ago(7200))

    def add(self, build_id: str, **manifest: Any) -> None:
        """Makes a build of the products, as they were an hour ago."""
        rows = np.stack([vector(ord(name)) for name in IDS])
        attributes = {"a": {"price": 0}}
        self.versions.add(build_id, IDS, rows=rows, watermark=ago(3600), attributes=attributes)
        made = self.versions.manifests[build_id]
        self.versions.manifests[build_id] = msgspec.structs.replace(made, **manifest)

    def note(self) -> None:
        """The model version has attributes from now on."""
        self.models.models = [
            msgspec.structs.replace(model, has_attributes=True) for model in self.models.models
        ]

    def patch(
        self,
        product_id: str,
        attributes: dict[str, Any] | None,
        seconds: float = 0,
        *,
        alone: bool = False,
    ) -> str:
        """Writes attributes, or deletes them; when that was."""
        moment = ago(seconds)
        self.attributes.put(product_id, attributes, moment, alone=alone)
        return moment

    def of(self, product_id: str) -> Any:
        """The attributes that answers have."""
        return self.snapshot.attributes_of(product_id)

    def reflecting(self, moment: str, product_id: str | None = None) -> Awaitable[Snapshot]:
        """A snapshot that reflects a write."""
        return self.registry.snapshot("m", Watermark(moment, product_id))


@in_virtual_time
async def test_a_notification_has_attributes_read(tmp_path: Path) -> None:
    """Of old and new products, with their rows; no vector counts as changed by them."""
    rig = Shop(tmp_path)
    async with rig.following():
        await rig.polled()
        rig.note()
        rig.put("n", vector(1))
        for name in ("a", "n"):
            rig.patch(name, {"price": 1})
        rig.notifier.send("a", "n")
        await until(lambda: rig.has("n"))
        assert rig.of("a") == rig.of("n") == {"price": 1}
        assert rig.of("b") == {}
        assert rig.fresh == 1
        ref = rig.snapshot.find("n")
        assert ref is not None
        assert rig.snapshot.attributes(ref) == {"price": 1}
        before = rig.snapshot
        rig.patch("a", {"price": 2})
        rig.notifier.send("a")
        await until(lambda: rig.of("a") == {"price": 2})
        assert before.attributes_of("a") == {"price": 1}
        assert rig.fresh == 1


@in_virtual_time
async def test_no_vector_is_read_for_changed_attributes(tmp_path: Path) -> None:
    """Their watermark holds without; but not before the row of a new product is read."""
    rig = Shop(tmp_path)
    async with rig.following():
        await rig.polled()
        rig.note()
        moment = rig.patch("a", {"price": 1}, alone=True)
        rig.put("n", vector(1))
        early = rig.patch("n", {"price": 1}, alone=True)
        rig.notifier.send("a", "n", attributes_only=True)
        await until(lambda: rig.of("n") == {"price": 1})
        assert rig.rows.reads == 0
        assert rig.snapshot.reflects(Watermark(moment, "a"))
        assert not rig.snapshot.reflects(Watermark(early, "n"))
        snapshot = await rig.reflecting(early, "n")
        assert snapshot.find("n") is not None
        assert rig.rows.reads == 1
        both = rig.patch("a", {"price": 2})
        rig.put("a", vector(2), both)
        rig.notifier.send("a", attributes_only=True)
        await until(lambda: rig.of("a") == {"price": 2})
        assert not rig.snapshot.reflects(Watermark(both, "a"))


@in_virtual_time
async def test_attributes_are_not_read_where_there_are_none(tmp_path: Path) -> None:
    """Neither by rounds nor by polls, until the model version is noted to have them."""
    rig = Shop(tmp_path, poll_s=0.1)
    async with rig.following():
        await rig.polled(2)
        rig.notifier.send("a")
        await until(lambda: rig.rows.reads == 1)
        await rig.polled(rig.rows.polls_ended + 1)
        assert rig.attributes.reads == []
        assert rig.attributes.polls == []
        rig.patch("a", {"price": 1}, 3000)
        rig.note()
        await until(lambda: rig.of("a") == {"price": 1})
        assert rig.attributes.reads == [["a"]]
        assert rig.rows.reads == 1  # no vector is read for it


@in_virtual_time
@pytest.mark.parametrize("lost", [False, True])
async def test_the_watermark_of_a_change_holds(
    tmp_path: Path,
    lost: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """Though its notification is lost; and once it is known, nothing is read for it."""
    rig = Shop(tmp_path)
    async with rig.following():
        await rig.polled()
        rig.note()
        for number in range(3):
            await asyncio.sleep(0.001)  # each has a moment of its own
            moment = rig.patch("a", {"price": number})
            if not lost:
                rig.notifier.send("a")
            snapshot = await rig.reflecting(moment, "a")
            assert snapshot.attributes_of("a") == {"price": number}
            reads = len(rig.attributes.reads)
            assert (await rig.reflecting(moment, "a")).reflects(Watermark(moment, "a"))
            assert len(rig.attributes.reads) == reads


@in_virtual_time
async def test_the_watermark_of_a_batch_holds_for_its_attributes(tmp_path: Path) -> None:
    """The shards of both are polled."""
    rig = Shop(tmp_path)
    async with rig.following():
        await rig.polled()
        rig.note()
        rig.put("n", vector(1))
        moment = rig.patch("n", {"price": 1})
        snapshot = await rig.reflecting(moment)
        assert snapshot.find("n") is not None
        assert snapshot.attributes_of("n") == {"price": 1}


@in_virtual_time
async def test_a_version_of_an_earlier_release_has_all_attributes_polled(tmp_path: Path) -> None:
    """However long ago they changed, once; later polls read what changed since."""
    rig = Shop(tmp_path, poll_s=0.1)
    rig.add("b-1", rows_with_attributes=None)
    rig.patch("a", {"price": 1}, seconds=9000)
    rig.patch("gone", None, seconds=9000)
    async with rig.following():
        rig.note()
        await until(lambda: rig.of("a") == {"price": 1})
        await until(lambda: len(rig.attributes.polls) >= 2)
        assert rig.attributes.polls[0] == ""
        assert rig.attributes.polls[1] > ago(90)
        assert rig.attributes.reads == [["a"]]
        rig.patch("b", {"price": 2})
        await until(lambda: rig.of("b") == {"price": 2})
        rig.patch("b", None)
        await until(lambda: rig.of("b") == {})


@in_virtual_time
async def test_a_poll_finds_what_changed_since_the_build(tmp_path: Path) -> None:
    """Over what was built, and nothing that is in it."""
    rig = Shop(tmp_path, poll_s=0.1)
    rig.add("b-1")
    rig.patch("a", {"price": 0}, seconds=3000)
    rig.patch("b", {"price": 1}, seconds=3000)
    rig.patch("c", {"price": 1}, seconds=9000)
    async with rig.following():
        assert rig.of("a") == {"price": 0}
        rig.note()
        await until(lambda: rig.of("b") == {"price": 1})
        assert rig.attributes.reads == [["b"]]
        assert rig.of("a") == {"price": 0}
        assert rig.of("c") == {}


@in_virtual_time
async def test_the_next_version_has_them_from_its_first_answer(tmp_path: Path) -> None:
    """Though the shards do not show them yet."""
    rig = Shop(tmp_path)
    async with rig.following():
        await rig.polled()
        rig.note()
        rig.put("n", vector(1))
        for name in ("a", "n"):
            rig.patch(name, {"price": 1})
            rig.notifier.send(name)
        await until(lambda: rig.of("n") == {"price": 1})
        rig.attributes.shown_by_gsi = list
        rig.rows.shown = []
        await rig.activate("b-2", (*IDS, "n"))
        assert rig.build_id == "b-2"
        assert rig.of("a") == rig.of("n") == {"price": 1}


@in_virtual_time
async def test_many_changed_attributes_request_no_build(tmp_path: Path) -> None:
    """Nor do they count against the limits of changed vectors."""
    rig = Shop(tmp_path, poll_s=0.1, delta_rows_soft=1, delta_rows_hard=2)
    async with rig.following():
        rig.note()
        for name in IDS:
            rig.patch(name, {"price": 1})
        await until(lambda: all(rig.of(name) for name in IDS))
        await until(lambda: rig.fresh == 0)
        assert rig.requests.requested == []


@in_virtual_time
async def test_without_memory_for_them_answers_say_so(tmp_path: Path) -> None:
    """And a build is requested, with which they come back."""
    rig = Shop(tmp_path, poll_s=0.1, bytes_max=12_000)
    async with rig.following():
        await rig.polled()
        rig.note()
        moment = rig.patch("a", {"text": "x" * 15_000})
        await until(lambda: rig.fresh is None)
        assert rig.of("a") == {}
        await until(lambda: bool(rig.requests.requested))
        with pytest.raises(NotYetVisible):
            await rig.reflecting(moment, "a")
