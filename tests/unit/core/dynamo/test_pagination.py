"""Pages: all of them, in order, each requested after the one before."""

import asyncio
from contextlib import aclosing
from typing import Any

from core.dynamo.pagination import paginate
from core.dynamo.wire import AttributeValue, Item


class Table:
    """Answers a query with the given pages, and records the requests."""

    def __init__(self, *pages: list[Item]) -> None:
        self.pages = pages
        self.requests: list[dict[str, Any]] = []
        self.concurrent = asyncio.Semaphore(1)
        self.inside = 0

    async def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """One page, with the key of its last item unless it is the last page."""
        self.inside += self.concurrent.locked()
        self.requests.append({"operation": operation, **parameters})
        number = len(self.requests)
        reply: dict[str, Any] = {"Items": self.pages[number - 1]}
        if number < len(self.pages):
            reply["LastEvaluatedKey"] = {"id": AttributeValue(S=str(number))}
        return reply


ONE, TWO = {"id": AttributeValue(S="1")}, {"id": AttributeValue(S="2")}


async def test_every_page_is_read() -> None:
    """An empty page does not end them; each request starts after the page before."""
    table = Table([ONE], [], [TWO])
    pages = [page async for page in paginate(table.call, "query", TableName="t", Limit=1)]
    assert pages == [[ONE], [], [TWO]]
    same = {"operation": "query", "TableName": "t", "Limit": 1}
    assert table.requests == [
        same,
        same | {"ExclusiveStartKey": ONE},
        same | {"ExclusiveStartKey": TWO},
    ]


async def test_a_gate_is_entered_for_requests_only() -> None:
    """The semaphore is taken in each request, and free while a page is used."""
    table = Table([ONE], [TWO])
    async for _ in paginate(table.call, "scan", gate=table.concurrent):
        assert not table.concurrent.locked()
    assert table.inside == 2


async def test_reading_can_end_early() -> None:
    """No page is requested before it is asked for."""
    table = Table([ONE], [TWO])
    async with aclosing(paginate(table.call, "scan")) as pages:
        async for _ in pages:
            break
    assert len(table.requests) == 1
