"""The same questions put to an API over and over, to hold its answers against each other."""

import asyncio
from typing import Any

import httpx
import numpy as np

from core.models import Build, BuildParameters
from core.resources import Resources
from core.vectors.arrays import Floats
from tests.api.serving import path_of
from tests.worker.processes import until

Answer = tuple[str, list[tuple[str, float]]]
"""The build that gave it, and products with their scores."""


class Questions:
    """Searches by vector and by product, and neighbours, each so many times."""

    def __init__(self, model: str, rows: int, dimension: int, each: int, seed: int = 1) -> None:
        self.model = model
        self.each = each
        self._random = np.random.default_rng(seed)
        self._vectors = self._some(each, dimension)
        self.rows = rows
        self.dimension = dimension
        asked = self._random.integers(rows, size=2 * each).tolist()
        self._searched, self._near = asked[:each], asked[each:]

    async def store(self, resources: Resources) -> None:
        """Stores the rows that they are about."""
        random = np.random.default_rng(self.rows)
        for start in range(0, self.rows, 1000):
            count = min(1000, self.rows - start)
            vectors = random.standard_normal((count, self.dimension)).astype(np.float32)
            entries = [(f"p{start + row:06d}", vector) for row, vector in enumerate(vectors)]
            await resources.embedding_service.store_batch(self.model, entries)

    async def build(self, resources: Resources) -> Build:
        """A deterministic build of them, once it has ended well."""
        parameters = BuildParameters(deterministic=True)
        build = await resources.build_service.request(self.model, parameters)
        build = await until(resources, build.build_id, lambda build: not build.open, seconds=600)
        assert build.status == "published", build.error
        return build

    async def ask(self, client: httpx.AsyncClient) -> list[Answer]:
        """An answer to each.

        Raises:
            httpx.HTTPError: one was not answered, or not by a success.
        """
        search = path_of(self.model, "search")
        answers = [
            await client.post(search, json={"vector": vector.tolist()}) for vector in self._vectors
        ]
        answers += [
            await client.post(search, json={"product_id": f"p{row:06d}"}) for row in self._searched
        ]
        answers += [
            await client.get(path_of(self.model, "products", f"p{row:06d}", "neighbors"))
            for row in self._near
        ]
        return [_answer(reply.raise_for_status().json()) for reply in answers]

    def _some(self, count: int, dimension: int) -> Floats:
        vectors: Floats = self._random.standard_normal((count, dimension)).astype(np.float32)
        return vectors


async def answering(client: httpx.AsyncClient, build_id: str, seconds: float = 90) -> None:
    """Waits until the API has a build in memory."""
    async with asyncio.timeout(seconds):
        while True:
            ready = await client.get("/health/ready")
            if build_id in ready.json()["loaded"].values():
                return
            await asyncio.sleep(0.05)


async def troubled(client: httpx.AsyncClient, model: str, seconds: float = 60) -> httpx.Response:
    """The answer to a look at readiness, once it tells that a current build is not in use."""
    async with asyncio.timeout(seconds):
        while True:
            ready = await client.get("/health/ready")
            if model in ready.json()["troubles"]:
                return ready
            await asyncio.sleep(0.05)


def _answer(body: Any) -> Answer:
    found = [(near["product_id"], near["score"]) for near in body["neighbors"]]
    return body["index"]["build_id"], found


def differing(before: list[Answer], after: list[Answer]) -> int:
    """How many answers name other products or scores, whichever build gave them."""
    return sum(one[1] != other[1] for one, other in zip(before, after, strict=True))
