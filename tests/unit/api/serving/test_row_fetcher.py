"""Changed rows are read in rounds, and none of them holds up the others."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pytest

from api.serving.row_fetcher import RowFetcher
from core.errors import Unavailable
from core.models import Embedding
from tests.virtual_time import in_virtual_time

MOMENT = "2026-01-01T00:00:00.000000Z"


class Table:
    """Rows that are all there, but for those that make a read fail."""

    def __init__(self) -> None:
        self.poison: set[str] = set()
        self.away = False
        self.rounds: list[list[str]] = []
        self.rows_of: list[set[str]] = []
        """Those of each round that succeeded of which rows were asked for."""
        self.applied: dict[str, Embedding | None] = {}
        self._read_again = asyncio.Event()

    async def read(
        self, product_ids: list[str], rows_of: set[str]
    ) -> Mapping[str, Embedding | None]:
        """Rows, each with a vector of one number."""
        self.rounds.append(product_ids)
        self._read_again.set()
        if self.away:
            raise Unavailable("away")
        if self.poison & set(product_ids):
            raise ValueError("DynamoDB does not take this key")
        self.rows_of.append(rows_of)
        return {p: Embedding(p, "m", b"\0\0\x80\x3f", 1, MOMENT) for p in product_ids}

    async def until(self, holds: Callable[[], bool]) -> None:
        """Waits for a round after which something holds."""
        while not holds():
            self._read_again.clear()
            await self._read_again.wait()

    def apply(self, found: Mapping[str, Embedding | None]) -> None:
        """Notes what was found."""
        self.applied |= found


@asynccontextmanager
async def reading(
    table: Table, queued_max: int = 1000
) -> AsyncIterator[RowFetcher[Mapping[str, Embedding | None]]]:
    """Reads until the end of the block."""
    made = RowFetcher(table.read, table.apply, gather_s=0.001, queued_max=queued_max)
    running = asyncio.create_task(made.run())
    try:
        async with asyncio.timeout(20):
            yield made
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@in_virtual_time
async def test_a_row_that_cannot_be_read_holds_up_no_other() -> None:
    """It is given up, with all who wait for it; those beside it in the round are applied."""
    table = Table()
    table.poison = {"bad"}
    async with reading(table) as made:
        made.enqueue(["a", "bad", "b"])
        await made.fetch(["c", "bad"], urgent=True)
        await made.fetch(["d"])
        assert set(table.applied) == {"a", "b", "c", "d"}
        rounds = len(table.rounds)
        await made.fetch(["e"])
        assert len(table.rounds) == rounds + 1  # the bad one is not tried for ever


@in_virtual_time
async def test_what_nobody_waits_for_any_more_is_not_kept() -> None:
    """Waiters that leave while DynamoDB is away take their rows with them; notifications stay."""
    table = Table()
    table.away = True
    async with reading(table) as made:
        made.enqueue(["notified"])
        asks = [asyncio.create_task(made.fetch([f"asked-{n}"], urgent=True)) for n in range(500)]
        await table.until(lambda: len(table.rounds) > 1)
        for ask in asks:
            ask.cancel()
        await asyncio.gather(*asks, return_exceptions=True)
        table.away = False
        await made.fetch(["last"])
        await made.fetch(["one more"])
        assert set(table.applied) == {"notified", "last", "one more"}


@in_virtual_time
async def test_whoever_wants_an_answer_goes_first_after_a_failure_too() -> None:
    """A read that failed does not put them behind all that was notified."""
    table = Table()
    table.away = True
    async with reading(table, queued_max=5000) as made:
        made.enqueue([f"notified-{n}" for n in range(5000)])
        ask = asyncio.create_task(made.fetch(["asked"], urgent=True))
        await table.until(lambda: any("asked" in ids for ids in table.rounds))
        table.away = False
        failed = len(table.rounds)
        await ask
        assert "asked" in table.rounds[failed]


@in_virtual_time
async def test_a_notification_beside_a_waiter_outlives_them() -> None:
    """It came while somebody waited for the same row, and holds when they have gone."""
    table = Table()
    table.away = True
    async with reading(table) as made:
        ask = asyncio.create_task(made.fetch(["both"]))
        await table.until(lambda: bool(table.rounds))
        made.enqueue(["both"])
        ask.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ask
        table.away = False
        await made.fetch(["later"])
        assert "both" in table.applied


@in_virtual_time
async def test_no_more_waits_than_there_is_room_for() -> None:
    """ChangeNotifier beyond it are counted as lost; one that waits already needs no room."""
    table = Table()
    made = RowFetcher(table.read, table.apply, gather_s=0.001, queued_max=3)
    assert made.enqueue(["a", "b", "c", "d"]) == 1
    assert made.enqueue(["a", "c"]) == 0


@in_virtual_time
async def test_rows_are_read_where_anyone_asks_for_them() -> None:
    """Attributes alone are read for those who ask for no more, also after a failure."""
    table = Table()
    async with reading(table) as made:
        await made.fetch(["a", "b"], rows=False)
        table.away = True
        waiting = [
            asyncio.create_task(made.fetch(["c", "d"], rows=False)),
            asyncio.create_task(made.fetch(["d"])),
        ]
        made.enqueue(["e"])
        await table.until(lambda: "d" in table.rounds[-1])
        table.away = False
        await asyncio.gather(*waiting)
        await made.fetch(["d"], rows=False)
        assert table.rows_of == [set(), {"d", "e"}, set()]
