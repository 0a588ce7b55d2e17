"""A running application with a model version whose changes can be hidden from it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from api.app import create_app
from core.errors import Unavailable
from core.models import Embedding, Model
from core.repositories.embeddings import EmbeddingRepository
from core.resources import Resources
from core.settings import Settings
from core.usecases.embeddings import EmbeddingService
from core.vectors.arrays import Floats
from tests.api.pool import Pool
from tests.api.serving import (
    build_here,
    caught_up,
    client_of,
    eventually,
    own_model,
    path_of,
    started,
    vector,
)

ROWS = 30
Json = dict[str, Any]


class Rows(EmbeddingRepository):
    """The embeddings table, whose index can be made to show nothing new, or to be away."""

    blind = False
    away = False
    reads = 0
    """Reads of single rows so far."""

    async def get_embeddings_by_model(
        self, model: Model, since: str | None = None, *, vectors: bool = True
    ) -> AsyncGenerator[list[Embedding], None]:
        """What the index shows."""
        self._check()
        async for page in super().get_embeddings_by_model(model, since, vectors=vectors):
            if not (self.blind and since is not None):
                yield page

    async def read_rows(
        self, model_version: str, product_ids: Sequence[str], generation: int | None = None
    ) -> list[Embedding]:
        """Rows as they are."""
        self._check()
        self.reads += 1
        return await super().read_rows(model_version, product_ids, generation)

    def _check(self) -> None:
        if self.away:
            raise Unavailable("DynamoDB is away, says the test")


class SilentNotifier:
    """Publishes nothing."""

    def publish(
        self, _model_version: str, _product_ids: Sequence[str], *, attributes_only: bool = False
    ) -> None:
        """Forgets it."""


@dataclass(frozen=True, slots=True)
class Shop:
    """A running application with one model version of 30 products and its first build."""

    client: httpx.AsyncClient
    model: str
    resources: Resources
    rows: Rows

    async def put(self, product_id: str, row: Floats) -> str:
        """Stores a vector; the watermark."""
        path = path_of(self.model, "embeddings", product_id)
        reply = await self.client.put(path, json={"vector": row.tolist()})
        assert reply.status_code in {200, 201}, reply.text
        token: str = reply.headers["x-watermark"]
        return token

    async def delete(self, product_id: str) -> str:
        """Deletes a product; the watermark."""
        reply = await self.client.delete(path_of(self.model, "embeddings", product_id))
        assert reply.status_code == 204, reply.text
        token: str = reply.headers["x-watermark"]
        return token

    async def search(self, **asked: Any) -> Json:
        """The answer to a search."""
        reply = await self.client.post(path_of(self.model, "search"), json=asked)
        assert reply.status_code == 200, reply.text
        answer: Json = reply.json()
        return answer

    async def ids(self, row: Floats, **asked: Any) -> list[str]:
        """The ids nearest to a vector."""
        found = await self.search(vector=row.tolist(), **asked)
        return [hit["product_id"] for hit in found["neighbors"]]

    async def fresh(self) -> int | None:
        """What answers say of the rows changed since."""
        found: int | None = (await self.search(vector=vector(0).tolist()))["index"]["fresh"]
        return found

    async def build(self, **asked: Any) -> str:
        """A build of the rows as they are, put to use."""
        path = path_of(self.model, "builds")
        build_id: str = (await self.client.post(path, json=asked)).json()["build_id"]
        await build_here(self.resources, build_id)

        async def used() -> bool:
            found = await self.client.get("/health/ready")
            loaded: dict[str, str] = found.json()["loaded"]
            return loaded.get(self.model) == build_id

        await until(used)
        return build_id


async def until(holds: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    """Waits for it."""
    async with asyncio.timeout(seconds):
        for _ in iter(int, 1):
            if await holds():
                return
            await asyncio.sleep(0.01)


Opened = Callable[..., AbstractAsyncContextManager[Shop]]


@pytest.fixture
def shop(api_settings: Settings, resources: Resources, pool: Pool, tmp_path: Path) -> Opened:
    """Opens a shop, with settings of its own: poll_s=0.2, deaf=True."""

    @asynccontextmanager
    async def opened(*, deaf: bool = False, **serving: Any) -> AsyncIterator[Shop]:
        settings = msgspec.structs.replace(
            api_settings,
            serving=msgspec.structs.replace(
                api_settings.serving, cache_dir=tmp_path / "cache", **serving
            ),
        )
        rows = Rows(resources.dynamo, settings)
        notifier: Any = SilentNotifier() if deaf else resources.notifier
        mine = replace(
            resources,
            settings=settings,
            embeddings=rows,
            embedding_service=EmbeddingService(
                resources.models, rows, resources.attributes, notifier, settings
            ),
        )
        entries = [(f"p{number:02d}", vector(number)) for number in range(ROWS)]
        app = create_app(settings, mine)
        async with (
            own_model(resources) as model,
            started(app),
            client_of(app, pool.token("operators")) as client,
        ):
            await mine.embedding_service.store_batch(model, entries)
            here = Shop(client, model, mine, rows)
            await here.build()
            await eventually(client, model)
            assert await caught_up(client, model, "p00") == 0
            yield here

    return opened
