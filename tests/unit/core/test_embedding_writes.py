"""A batch against a DynamoDB that is busy, or gone: the first is waited out, the second is not."""

import asyncio
from typing import Any

import pytest

from core.dynamo.client import Dynamo
from core.errors import Busy, Unavailable
from core.models import Model
from core.repositories.embeddings import EmbeddingRepository
from core.settings import Aws, Ingest, Settings
from tests.virtual_time import in_virtual_time

MODEL = Model("m", 1, "cosine", 1, "2026-01-01T00:00:00.000000Z")
ROWS = [(f"p{number}", b"\0\0\x80\x3f") for number in range(60)]
PATIENCE_S, DEADLINE_S = 0.2, 20.0


class Troubled(Dynamo):
    """Raises for some seconds, then takes everything."""

    def __init__(self, trouble: Unavailable, seconds: float) -> None:
        super().__init__(None, deadline_s=1)
        self._trouble = trouble
        self._until = asyncio.get_running_loop().time() + seconds
        self.stored: set[str] = set()

    async def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """A batch of writes."""
        await asyncio.sleep(0.01)
        if asyncio.get_running_loop().time() < self._until:
            raise self._trouble
        for request in parameters["RequestItems"]["k9-embeddings-dev"]:
            self.stored.add(request["PutRequest"]["Item"]["product_id"]["S"])
        return {"UnprocessedItems": {}}


def repository(dynamo: Dynamo) -> EmbeddingRepository:
    """One with little patience for a DynamoDB that is gone."""
    ingest = Ingest(batch_deadline_s=DEADLINE_S)
    return EmbeddingRepository(dynamo, Settings(aws=Aws(deadline_s=PATIENCE_S), ingest=ingest))


@in_virtual_time
async def test_a_busy_dynamodb_is_waited_out() -> None:
    """Turned away for longer than a call may take, a batch is stored all the same."""
    dynamo = Troubled(Busy("throttled"), 3 * PATIENCE_S)
    assert await repository(dynamo).store_batch(MODEL, ROWS) == []
    assert dynamo.stored == {product_id for product_id, _ in ROWS}


@in_virtual_time
async def test_a_dynamodb_that_is_gone_is_not() -> None:
    """Every id comes back as not taken, long before the batch's own deadline."""
    began = asyncio.get_running_loop().time()
    dynamo = Troubled(Unavailable("gone"), DEADLINE_S)
    left = await repository(dynamo).store_batch(MODEL, ROWS)
    assert left == [product_id for product_id, _ in ROWS]
    assert asyncio.get_running_loop().time() - began < DEADLINE_S / 2


class Hung(Dynamo):
    """Answers nothing."""

    def __init__(self) -> None:
        super().__init__(None, deadline_s=1)
        self.calls = 0

    async def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """A batch of writes, which takes as long as a call may."""
        self.calls += 1
        await asyncio.sleep(PATIENCE_S)
        raise Unavailable("no answer")


@in_virtual_time
async def test_no_call_is_begun_once_dynamodb_is_known_to_be_gone() -> None:
    """A large batch takes no longer to fail than its first calls."""
    dynamo = Hung()
    rows = [(f"p{number}", ROWS[0][1]) for number in range(1000)]
    left = await repository(dynamo).store_batch(MODEL, rows)
    assert left == [product_id for product_id, _ in rows]
    assert dynamo.calls == Ingest().batch_concurrency


class OneHangs(Dynamo):
    """Answers all calls but the first."""

    def __init__(self) -> None:
        super().__init__(None, deadline_s=1)
        self.calls = 0

    async def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """A batch of writes."""
        self.calls += 1
        if self.calls == 1:
            await asyncio.sleep(PATIENCE_S)
            raise Unavailable("no answer")
        await asyncio.sleep(PATIENCE_S / 8)
        return {"UnprocessedItems": {}}


@in_virtual_time
async def test_one_call_that_hangs_does_not_speak_for_all() -> None:
    """While the others are answered, nothing is given up, that one's rows included."""
    rows = [(f"p{number}", ROWS[0][1]) for number in range(2000)]
    assert await repository(OneHangs()).store_batch(MODEL, rows) == []


@pytest.mark.parametrize("trouble", [Busy("throttled"), Unavailable("gone")])
@in_virtual_time
async def test_a_short_trouble_is_none(trouble: Unavailable) -> None:
    """Either kind, when it passes at once."""
    dynamo = Troubled(trouble, 0.05)
    assert await repository(dynamo).store_batch(MODEL, ROWS) == []
