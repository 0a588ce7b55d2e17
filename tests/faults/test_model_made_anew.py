"""A model version is deleted and made anew under writers, searches and an import, DynamoDB away."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from core.embedding_files.importing import import_file
from core.embedding_files.readers import open_embeddings
from core.errors import K9Error, NotFound
from core.models import Model
from core.resources import Resources, open_resources
from tests.api.serving import build_here, eventually, path_of, vector
from tests.faults.proxied_api import GONE, MODEL, ProxiedApi
from tests.faults.proxy import Faults
from worker.model_deletion import delete_model

EARLIER, LATER = 8, 5
"""Dimensions of the two."""
PAUSE_S = 0.2
"""Of each caller: the deletion takes half a minute, for which they go on."""
QUERY = {EARLIER: vector(1).tolist(), LATER: vector(1, LATER).tolist()}


@pytest.fixture
async def worker(site: ProxiedApi) -> AsyncIterator[Resources]:
    """A worker's resources, through the same proxies; it waits as long as writes may take."""
    settings = msgspec.structs.replace(
        site.settings,
        ingest=site.settings.ingest,
        building=msgspec.structs.replace(site.settings.building, lease_s=1.0),
    )
    async with open_resources(settings) as opened:
        yield opened


class Traffic:
    """Callers that go on whatever they are answered, and what they were answered."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.dimension = EARLIER
        """Of what is written now."""
        self.acknowledged: dict[int, dict[str, list[float]]] = {EARLIER: {}, LATER: {}}
        self.answers: list[tuple[int, set[str]]] = []
        """Of each search: the dimension of its query, and the ids found."""
        self.statuses: Counter[int] = Counter()
        self.over = asyncio.Event()

    async def write(self, writer: int) -> None:
        """Puts rows of its own, one after the other; a product id tells the dimension."""
        number = 0
        while not self.over.is_set():
            dimension, number = self.dimension, number + 1
            name = f"d{dimension}-w{writer}-{number % 40}"
            row = np.random.default_rng(number).normal(size=dimension).astype(np.float32).tolist()
            path = path_of(MODEL, "embeddings", name)
            reply = await self._client.put(path, json={"vector": row})
            self.statuses[reply.status_code] += 1
            if reply.status_code in {200, 201}:
                self.acknowledged[dimension][name] = row
            else:
                self.acknowledged[dimension].pop(name, None)  # nobody knows whether it is stored
            await asyncio.sleep(PAUSE_S)

    async def search(self) -> None:
        """Asks by either dimension in turn."""
        path = path_of(MODEL, "search")
        while not self.over.is_set():
            for dimension, query in QUERY.items():
                reply = await self._client.post(path, json={"vector": query, "k": 200})
                if reply.status_code == httpx.codes.OK:
                    found = {hit["product_id"] for hit in reply.json()["neighbors"]}
                    self.answers.append((dimension, found))
            await asyncio.sleep(PAUSE_S)


async def importing(resources: Resources, path: Path) -> None:
    """Imports a file of the earlier dimension again and again, until it is refused."""
    source = open_embeddings(path)
    with suppress(K9Error):  # the model version is being deleted, or DynamoDB is away
        for _ in iter(int, 1):
            await import_file(resources.embedding_service, MODEL, source, rows_max=10)
            await asyncio.sleep(0.05)


def of(name: str) -> int:
    """The dimension of the model version that a product was written to."""
    return LATER if name.startswith(f"d{LATER}-") else EARLIER


async def deleted(worker: Resources) -> Model:
    """Has a worker go on until the model version is gone; the record as it was."""
    last: Model | None = None
    while True:
        try:
            last = await worker.models.find_model(MODEL)
            await delete_model(worker, last)
        except NotFound:
            assert last is not None
            return last
        except K9Error:  # DynamoDB is away
            await asyncio.sleep(0.2)
        await asyncio.sleep(0.1)


@pytest.mark.timeout(240)
async def test_only_the_later_model_is_left(
    site: ProxiedApi, worker: Resources, tmp_path: Path
) -> None:
    """No answer mixes the two, no row of the earlier is left, every acknowledged one is there."""
    lines = [{"product_id": f"i{n}", "vector": vector(n).tolist()} for n in range(60)]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join(msgspec.json.encode(line) for line in lines))
    async with site.api() as client, asyncio.timeout(200):
        await eventually(client, MODEL)
        traffic = Traffic(client)
        searching = asyncio.create_task(traffic.search())
        writers = [asyncio.create_task(traffic.write(writer)) for writer in range(3)]
        imported = asyncio.create_task(importing(worker, file))
        while len(traffic.answers) < 5:  # noqa: ASYNC110 - what counts is what was answered
            await asyncio.sleep(0.02)
        assert (await client.delete(path_of(MODEL))).status_code == 202
        deleting = asyncio.create_task(deleted(worker))
        for _ in range(2):
            await asyncio.sleep(1)
            site.set(GONE, "dynamodb")
            await asyncio.sleep(1)
            site.set(Faults(), "dynamodb")
        # Whoever writes rows of the earlier dimension once the name is free would make that again.
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, imported, return_exceptions=True)
        earlier = await deleting
        traffic.dimension = LATER
        first = {"vector": vector(0, LATER).tolist()}
        made = await client.put(path_of(MODEL, "embeddings", f"d{LATER}-first"), json=first)
        assert made.status_code == 201
        writers = [asyncio.create_task(traffic.write(writer)) for writer in range(3)]
        while len(traffic.acknowledged[LATER]) < 30:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.02)
        asked = await client.post(path_of(MODEL, "builds"), json={})
        await build_here(site.straight, asked.json()["build_id"])
        await eventually(client, MODEL)
        seen = len(traffic.answers)
        while len(traffic.answers) < seen + 5:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.02)
        traffic.over.set()
        await asyncio.gather(searching, *writers)
        await check(site, client, traffic, earlier)


async def check(
    site: ProxiedApi, client: httpx.AsyncClient, traffic: Traffic, earlier: Model
) -> None:
    """What was answered, and what is left."""
    assert {dimension for dimension, _ in traffic.answers} == {EARLIER, LATER}
    for dimension, found in traffic.answers:
        assert {of(name) for name in found} <= {dimension}
    later = await site.straight.models.get_model(MODEL)
    assert (later.dimension, later.generation) == (LATER, max(later.generation, earlier.generation))
    rows: dict[str, Any] = {}
    async for page in site.straight.embeddings.get_embeddings_by_model(later):
        rows |= {row.product_id: row for row in page}
    assert {of(name) for name in rows} == {LATER}
    for name, row in traffic.acknowledged[LATER].items():
        assert np.frombuffer(rows[name].vector, "<f4").tolist() == row
    left = [
        row
        async for page in site.straight.embeddings.get_embeddings_by_model(earlier)
        for row in page
    ]
    assert left == []
    assert traffic.statuses[409]
