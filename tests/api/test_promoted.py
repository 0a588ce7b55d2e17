"""An earlier build made current again: its index, and none of its old rows."""

import asyncio
from typing import Any

import numpy as np
import pytest

from core.vectors.arrays import Floats
from tests.api.serving import assert_problem, path_of, vector
from tests.api.shop import ROWS, Opened, Shop, until

QUERIES = [vector(1), vector(2), vector(500), vector(900)]


async def _promote(here: Shop, build_id: str) -> None:
    """Makes a build current, and waits until it answers."""
    reply = await here.client.post(path_of(here.model, "promote"), json={"build_id": build_id})
    assert reply.status_code == 200, reply.text

    async def used() -> bool:
        found = (await here.client.get("/health/ready")).json()
        return bool(found["loaded"].get(here.model) == build_id)

    await until(used, 10)


async def _applied(here: Shop, *tokens: str) -> None:
    for token in tokens:
        await here.search(vector=vector(1).tolist(), min_watermark=token)


class Rows:
    """What the products are, and questions whose answers must be of just that."""

    def __init__(self) -> None:
        self.gone: set[str] = set()
        self.changed: dict[str, Floats] = {}

    async def ask(self, here: Shop) -> None:
        """Asks in every way, and checks each answer."""
        gone, changed = set(self.gone), dict(self.changed)
        for exact in (False, True):
            lists = [
                (await here.search(vector=query.tolist(), k=100, exact=exact))["neighbors"]
                for query in QUERIES
            ]
            batch = [query.tolist() for query in QUERIES]
            lists += (await here.search(vectors=batch, k=100, exact=exact))["results"]
            for query, hits in zip([*QUERIES, *QUERIES], lists, strict=True):
                _check(hits, query, gone, changed)
        for product_id in gone:
            path = path_of(here.model, "products", product_id, "neighbors")
            assert_problem(await here.client.get(path), 404, "not-found")
            asked = {"product_id": product_id}
            reply = await here.client.post(path_of(here.model, "search"), json=asked)
            assert_problem(reply, 404, "not-found")
        for product_id, row in {**changed, "p04": vector(4)}.items():
            others = {name: form for name, form in changed.items() if name != product_id}
            hits = (await here.search(product_id=product_id, k=100))["neighbors"]
            _check(hits, row, gone, others)
            path = path_of(here.model, "products", product_id, "neighbors")
            for k in (3, 100):
                reply = await here.client.get(path, params={"k": k})
                _check(reply.json()["neighbors"], row, gone, others if k > ROWS else {})


def _check(hits: Any, query: Floats, gone: set[str], changed: dict[str, Floats]) -> None:
    found = {hit["product_id"]: hit["score"] for hit in hits}
    assert not gone & set(found)
    for product_id, row in changed.items():
        cosine = np.dot(query, row) / (np.linalg.norm(query) * np.linalg.norm(row))
        assert found[product_id] == pytest.approx(float(cosine), abs=1e-5)


async def test_promoting_to_an_earlier_build_and_back_brings_no_old_row_back(shop: Opened) -> None:
    """With a deletion, an overwrite and a new product since, and searched all the while."""
    async with shop() as here:
        first: str = (await here.search(vector=vector(1).tolist()))["index"]["build_id"]
        rows, stop = Rows(), False

        async def watch() -> int:
            asked = 0
            while not stop:
                await rows.ask(here)
                asked += 1
                await asyncio.sleep(0.001)
            return asked

        async def change(gone: str, overwritten: str, new: str, seed: int) -> None:
            forms = {overwritten: vector(seed), new: vector(seed + 400)}
            tokens = [await here.put(name, row) for name, row in forms.items()]
            await _applied(here, *tokens, await here.delete(gone))
            rows.gone.add(gone)
            rows.changed |= forms

        await change("p01", "p02", "new1", 500)
        watching = asyncio.create_task(watch())
        second = await here.build()
        await _promote(here, first)
        await change("p11", "p12", "new2", 501)
        await _promote(here, second)
        await change("p21", "p22", "new3", 502)
        await _promote(here, first)
        await asyncio.sleep(0.1)
        stop = True
        assert await watching > 3
        answer = await here.search(vector=vector(1).tolist())
        assert answer["index"]["build_id"] == first
        assert answer["index"]["fresh"] == 9


async def test_a_build_from_which_too_much_changed_brings_nothing_deleted_back(
    shop: Opened,
) -> None:
    """What was deleted stays hidden, also after the promotion; the answer tells of the rest."""
    async with shop(delta_rows_hard=5, delta_rows_soft=1000, poll_s=0.5) as here:
        first: str = (await here.search(vector=vector(1).tolist()))["index"]["build_id"]
        await _applied(here, await here.delete("p01"), await here.put("p02", vector(500)))
        for turn in range(2):
            for number in range(3):
                await here.put(f"new{turn}{number}", vector(200 + 10 * turn + number))
            await here.build()
        assert await here.fresh() == 0
        await _promote(here, first)
        for _ in range(20):
            found = await here.search(vector=vector(1).tolist(), k=100)
            assert found["index"]["fresh"] is None
            assert {hit["product_id"] for hit in found["neighbors"]} == {
                f"p{number:02d}" for number in {*range(ROWS)} - {1}
            }
            await asyncio.sleep(0.02)
        await here.delete("p03")

        async def gone() -> bool:
            return "p03" not in await here.ids(vector(3), k=100)

        await until(gone)
