"""Changes since the build: found, hidden, and never stale, over the application as a whole."""

import asyncio
from base64 import urlsafe_b64encode

import msgspec
import numpy as np
import pytest

from core.models import Watermark
from core.watermarks import Watermarks
from tests.api.serving import assert_problem, path_of, vector
from tests.api.shop import ROWS, Opened, until


async def test_a_write_is_found_without_a_build_or_a_poll(shop: Opened) -> None:
    """A new product, by vector, by itself and among neighbours; with its exact score."""
    async with shop() as here:
        near = (vector(3) + np.float32(0.01)).astype(np.float32)
        await here.put("new", near)

        async def found() -> bool:
            return (await here.ids(near))[0] == "new"

        await until(found)
        answer = await here.search(product_id="new", k=3)
        assert answer["neighbors"][0]["product_id"] == "p03"
        assert answer["index"]["fresh"] == 1
        for product_id, first in (("new", "p03"), ("p03", "new")):
            reply = await here.client.get(path_of(here.model, "products", product_id, "neighbors"))
            assert reply.json()["neighbors"][0]["product_id"] == first
            assert reply.json()["index"]["fresh"] == 1
            assert len(reply.json()["neighbors"]) == 10
        exact = near.astype(np.float64) @ vector(3).astype(np.float64)
        exact /= np.linalg.norm(near.astype(np.float64)) * np.linalg.norm(vector(3).astype(float))
        assert answer["neighbors"][0]["score"] == pytest.approx(exact, rel=1e-6)
        assert len(await here.ids(near, k=1000)) == ROWS + 1
        assert "new" not in await here.ids(near, exclude=["new"])


async def test_an_old_form_never_comes_back(shop: Opened) -> None:
    """Of an overwritten product, and of a deleted one: not in a search, not by the matrix."""
    async with shop() as here:
        await here.put("p05", vector(500))
        await here.delete("p06")
        asked = {"product_id": "p06"}

        async def gone() -> bool:
            reply = await here.client.post(path_of(here.model, "search"), json=asked)
            overwritten = (await here.ids(vector(500)))[0] == "p05"
            return bool(reply.status_code == 404 and overwritten)

        await until(gone)
        for k in (1, 4, 5, 10, 100):
            for row in (5, 6, 7, 500):
                found = await here.ids(vector(row), k=k)
                assert "p06" not in found
                assert row != 5 or found[0] != "p05"
            for number in {*range(ROWS)} - {6}:
                path = path_of(here.model, "products", f"p{number:02d}", "neighbors")
                reply = await here.client.get(path, params={"k": k})
                hits = {hit["product_id"]: hit["score"] for hit in reply.json()["neighbors"]}
                assert "p06" not in hits
                assert len(hits) == min(k, ROWS - 2)
                truth = await here.search(product_id=f"p{number:02d}", k=k, exact=True)
                assert reply.json()["neighbors"] == truth["neighbors"]
        path = path_of(here.model, "products", "p06", "neighbors")
        assert_problem(await here.client.get(path), 404, "not-found")
        assert await here.fresh() == 2
        await here.put("p06", vector(6))

        async def back() -> bool:
            return (await here.ids(vector(6)))[0] == "p06"

        await until(back)
        assert await here.fresh() == 1


async def test_a_lost_hint_costs_no_more_than_a_poll(shop: Opened) -> None:
    """Rows whose hints nobody heard are found in the shards."""
    async with shop(deaf=True, poll_s=0.3) as here:
        await here.put("new", vector(900))
        await here.delete("p09")

        async def seen() -> bool:
            found = await here.ids(vector(900), k=100)
            return found[0] == "new" and "p09" not in found

        await until(seen)


async def test_ones_own_write_is_read_with_hints_lost_and_the_index_behind(shop: Opened) -> None:
    """The token of a single write names its row, which is read at once, and stays."""
    async with shop(deaf=True, poll_s=0.2) as here:
        here.rows.blind = True
        for number in range(5):
            token = await here.put("new", vector(700 + number))
            found = await here.ids(vector(700 + number), min_watermark=token)
            assert found[0] == "new"
        token = await here.delete("p02")
        assert "p02" not in await here.ids(vector(2), k=100, min_watermark=token)
        await asyncio.sleep(0.5)  # a poll that shows less takes nothing away
        assert "p02" not in await here.ids(vector(2), k=100)
        assert (await here.ids(vector(704)))[0] == "new"


async def test_a_batch_is_reflected_once_its_shards_show_it(shop: Opened) -> None:
    """The search has the shards looked through, and does not wait for the next poll."""
    async with shop(deaf=True, poll_s=60) as here:
        rows = [{"product_id": f"b{i}", "vector": vector(100 + i).tolist()} for i in range(3)]
        reply = await here.client.post(
            f"/models/{here.model}/embeddings:batch", json={"embeddings": rows}
        )
        token = reply.headers["x-watermark"]
        found = await here.search(vector=vector(101).tolist(), min_watermark=token)
        assert found["neighbors"][0]["product_id"] == "b1"
        assert found["index"]["fresh"] == 3


async def test_a_watermark_that_no_write_gave_is_refused(shop: Opened) -> None:
    """And leaves no trace: rows that change afterwards are followed as before."""
    async with shop() as here:
        nobody = Watermark("2026-01-01T00:00:00.000000Z", "")
        for token in ("", "x", here.resources.watermarks.encode(nobody)):
            body = {"vector": vector(1).tolist(), "min_watermark": token}
            reply = await here.client.post(path_of(here.model, "search"), json=body)
            assert_problem(reply, 400)
        token = await here.put("new", vector(800))
        assert (await here.ids(vector(800), min_watermark=token))[0] == "new"


async def test_what_cannot_be_reflected_is_a_conflict(shop: Opened) -> None:
    """A watermark from the future; with DynamoDB away any: after a short wait."""
    async with shop(deaf=True) as here:
        token = await here.put("new", vector(800))
        future = "2999-01-01T00:00:00.000000Z"
        encode = here.resources.watermarks.encode
        for asked in (encode(Watermark(future, "p00")), encode(Watermark(future)), token):
            here.rows.away = asked == token
            began = asyncio.get_running_loop().time()
            body = {"vector": vector(1).tolist(), "min_watermark": asked}
            reply = await here.client.post(path_of(here.model, "search"), json=body)
            assert_problem(reply, 409, "not-yet-visible")
            assert asyncio.get_running_loop().time() - began < 2
        here.rows.away = False
        assert (await here.ids(vector(800), min_watermark=token))[0] == "new"


async def test_only_a_watermark_that_a_write_answered_is_waited_for(shop: Opened) -> None:
    """Others, and those of the releases before tokens had a code, are compared with what shows."""
    async with shop(deaf=True, poll_s=60) as here:
        here.rows.blind = True
        token = await here.put("new", vector(800))
        moment = here.resources.watermarks.decode(token).watermark.moment
        earlier = urlsafe_b64encode(msgspec.msgpack.encode([moment, "new"])).rstrip(b"=").decode()
        other_key = Watermarks(()).encode(Watermark(moment, "new"))
        for unsigned in (earlier, other_key):
            reads = here.rows.reads
            body = {"vector": vector(1).tolist(), "min_watermark": unsigned}
            reply = await here.client.post(path_of(here.model, "search"), json=body)
            assert_problem(reply, 409, "not-yet-visible")
            assert here.rows.reads == reads  # nothing was looked for
        assert (await here.ids(vector(800), min_watermark=token))[0] == "new"
        for visible in (earlier, other_key):
            assert (await here.ids(vector(800), min_watermark=visible))[0] == "new"


async def test_searches_go_on_without_dynamodb_and_changes_follow_once_it_is_back(
    shop: Opened,
) -> None:
    """What was known stays known, and nothing has to be done."""
    async with shop(poll_s=0.2) as here:
        token = await here.delete("p01")
        assert "p01" not in await here.ids(vector(1), k=100, min_watermark=token)
        here.rows.away = True
        await here.put("new", vector(600))
        for _ in range(20):
            assert "p01" not in await here.ids(vector(1), k=100)
            await asyncio.sleep(0.02)
        here.rows.away = False

        async def back() -> bool:
            return (await here.ids(vector(600)))[0] == "new"

        await until(back)


async def test_a_swap_never_brings_a_deleted_product_back(shop: Opened) -> None:
    """Deleted before, in and after a build's pull, with an index that shows none of it."""
    async with shop() as here:
        gone: dict[str, str] = {}
        stop = False

        async def watch() -> int:
            looks = 0
            while not stop:
                known = set(gone)
                found = set(await here.ids(vector(0), k=100))
                assert not known & found
                looks += 1
                await asyncio.sleep(0.001)
            return looks

        async def write() -> None:
            for number in range(ROWS - 8):
                token = await here.delete(f"p{number:02d}")
                await here.search(vector=vector(0).tolist(), min_watermark=token)
                gone[f"p{number:02d}"] = token
                await asyncio.sleep(0.05)

        here.rows.blind = True
        watching, writing = asyncio.create_task(watch()), asyncio.create_task(write())
        builds = [await here.build(force=True) for _ in range(3)]
        await writing
        builds.append(await here.build(force=True))
        stop = True
        assert await watching > 50
        assert len(set(builds)) == 4
        assert len(await here.ids(vector(0), k=100)) == 8


async def test_a_build_takes_over_what_changed(shop: Opened) -> None:
    """After it nothing differs from the index, and answers are the same."""
    async with shop() as here:
        for number in range(4):
            await here.put(f"new{number}", vector(200 + number))
        token = await here.put("p00", vector(300))
        before = await here.search(vector=vector(300).tolist(), k=100, min_watermark=token)

        async def all_in() -> bool:
            return await here.fresh() == 5

        await until(all_in)
        before = await here.search(vector=vector(300).tolist(), k=100)
        await here.build()
        after = await here.search(vector=vector(300).tolist(), k=100)
        assert after["neighbors"] == before["neighbors"]
        assert after["index"]["fresh"] == 0


@pytest.mark.parametrize("pinned", [False, True])
async def test_past_the_soft_limit_a_build_is_requested(shop: Opened, pinned: bool) -> None:  # noqa: FBT001
    """One, and none where an operator pinned the current one."""
    async with shop(delta_rows_soft=3) as here:
        if pinned:
            await here.resources.dynamo.call(
                "update_item",
                TableName=here.resources.settings.table("models"),
                Key={"model_version": {"S": here.model}},
                UpdateExpression="SET pinned = :yes",
                ExpressionAttributeValues={":yes": {"BOOL": True}},
            )
        for number in range(6):
            await here.put(f"new{number}", vector(200 + number))

        async def requested() -> bool:
            model = await here.resources.models.get_model(here.model)
            return model.open_build_id is not None

        if pinned:
            await asyncio.sleep(0.5)
            assert not await requested()
            return
        await until(requested)
        page, _ = await here.resources.builds.list_builds(here.model, limit=10)
        assert len(page) == 2


async def test_past_the_hard_limit_the_index_answers_alone_until_the_next_build(
    shop: Opened,
) -> None:
    """And says so; reading ones own write is then a conflict."""
    async with shop(delta_rows_hard=5, delta_rows_soft=1000) as here:
        token = ""
        for number in range(8):
            token = await here.put(f"new{number}", vector(200 + number))

        async def over() -> bool:
            return await here.fresh() is None

        await until(over)
        body = {"vector": vector(1).tolist(), "min_watermark": token}
        reply = await here.client.post(path_of(here.model, "search"), json=body)
        assert_problem(reply, 409, "not-yet-visible")
        assert len(await here.ids(vector(0), k=100)) == ROWS
        await here.build()

        async def recovered() -> bool:
            return await here.fresh() == 0

        await until(recovered)
        assert len(await here.ids(vector(0), k=100)) == ROWS + 8
