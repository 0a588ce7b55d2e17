"""Writing a batch of rows: by concurrent BatchWriteItem calls, or in transactions under a claim."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from time import monotonic
from typing import Any, Final

from core.concurrency import gather
from core.dynamo.client import Dynamo
from core.dynamo.wire import RequestItem
from core.errors import Busy, TableMissing, TransactionFailed, Unavailable
from core.models import Model
from core.repositories import transactions
from core.repositories.embedding_rows import other_generation, writable
from core.repositories.idempotency import Claim
from core.retry import RetryPolicy

_ROWS: Final = 25
"""The most that one call takes."""
_ONCE_ITEMS: Final = 99
"""A transaction has 100 parts, one of them the checkpoint."""
_UNPROCESSED: Final = RetryPolicy(first_s=0.05, max_s=2.0)


Group = Sequence[RequestItem]
"""A row, and the item of its attributes where they are written with it."""


class BatchWrite:
    """The state that the calls of one batch share; times are the event loop's."""

    def __init__(self, dynamo: Dynamo, table: str, deadline_s: float, patience_s: float) -> None:
        """No call begins or lasts after `deadline_s` from now.

        It ends earlier once DynamoDB has answered nothing for `patience_s`.
        """
        self._dynamo = dynamo
        self._table = table
        self._patience_s = patience_s
        now_s = asyncio.get_running_loop().time()
        self._deadline = now_s + deadline_s
        self._monotonic_deadline = monotonic() + deadline_s
        """The same by a clock that also runs while the process is suspended."""
        self._silent_since: float | None = now_s
        """Since when DynamoDB has not answered; None once it has."""
        self._answered_at = 0.0
        """When DynamoDB last answered a call."""
        self._unreachable = False
        """DynamoDB does not answer, and is not just busy: no further call begins."""

    async def run(self, items: Sequence[RequestItem], concurrency: int) -> list[str]:
        """Puts items, each product id once, and returns the ids that were not stored in time.

        Raises:
            TableMissing: the table is missing.
        """
        requests = [{"PutRequest": {"Item": item}} for item in items]
        chunks = [requests[start : start + _ROWS] for start in range(0, len(requests), _ROWS)]
        gate = asyncio.Semaphore(concurrency)
        unstored = await gather(*(self._write(chunk, gate) for chunk in chunks))
        return [product_id for chunk in unstored for product_id in chunk]

    async def _write(self, requests: list[dict[str, Any]], gate: asyncio.Semaphore) -> list[str]:
        """One call, retried with backoff for its unprocessed items; the ids still unprocessed."""
        loop = asyncio.get_running_loop()
        attempts = 0
        async with gate:
            while monotonic() < self._monotonic_deadline and not self._unreachable:
                began_s = loop.time()
                try:
                    async with asyncio.timeout_at(self._timeout_at(began_s)):
                        reply = await self._dynamo.call(
                            "batch_write_item", RequestItems={self._table: requests}
                        )
                    requests = reply.get("UnprocessedItems", {}).get(self._table, [])
                    self._note_answer(loop.time())
                except TableMissing:
                    raise
                except Busy:
                    self._note_answer(loop.time())
                except (Unavailable, TimeoutError):
                    # What was stored is unknown: all of it is sent again.
                    self._note_silence(began_s, loop.time())
                if not requests:
                    return []
                attempts += 1
                left_s = self._timeout_at(loop.time()) - loop.time()
                await asyncio.sleep(max(0.0, min(_UNPROCESSED.delay_s(attempts), left_s)))
        return [request["PutRequest"]["Item"]["product_id"]["S"] for request in requests]

    def _timeout_at(self, time_s: float) -> float:
        """When a call that begins now times out."""
        since = time_s if self._silent_since is None else self._silent_since
        return min(self._deadline, since + self._patience_s)

    def _note_answer(self, time_s: float) -> None:
        """DynamoDB answered, even if only that it is busy."""
        self._answered_at = time_s
        self._silent_since = None
        self._unreachable = False

    def _note_silence(self, began_s: float, time_s: float) -> None:
        """DynamoDB did not answer a call that began at this time."""
        if self._silent_since is None:
            self._silent_since = max(began_s, self._answered_at)
        self._unreachable = time_s - self._silent_since >= self._patience_s


class Transactions:
    """Writes of rows in transactions, each row together with its attributes, if it has any."""

    def __init__(self, dynamo: Dynamo, table: str, model: Model, deadline_s: float) -> None:
        """No transaction begins later than `deadline_s` from now."""
        self._dynamo = dynamo
        self._table = table
        self._model = model
        self._clock = asyncio.get_running_loop().time
        self._deadline = self._clock() + deadline_s

    async def write(self, groups: Sequence[Group], concurrency: int) -> list[str]:
        """Puts groups, each product id once, and returns the ids that were not stored in time.

        Raises:
            OtherGeneration: a row is of another model version of the same name.
            TableMissing: the table is not there.
        """
        gate = asyncio.Semaphore(concurrency)

        async def attempt(chunk: Sequence[Group]) -> list[str]:
            async with gate:
                stored = await self._transact(chunk)
            return [] if stored else _ids(chunk)

        unstored = await gather(*(attempt(chunk) for _, chunk in _chunks(groups)))
        return [product_id for ids in unstored for product_id in ids]

    async def write_once(self, groups: Sequence[Group], claim: Claim) -> list[str]:
        """The same, with a checkpoint under an idempotency key in each transaction.

        What has a checkpoint of an earlier try is left alone: it may have been overwritten since.

        Raises:
            InFlight: the claim was lost.
            OtherGeneration: a row is of another model version of the same name.
            TableMissing: a table is not there.
        """
        # Rows of an earlier model version of the name, and so what its checkpoints say, are gone.
        prefix = f"{self._model.generation}_" if self._model.generation else ""
        unstored: list[str] = []
        for start, chunk in _chunks(groups):
            name = f"{prefix}{start}"
            if name in claim.checkpoints:
                continue
            # After a fault nothing more is sent: the next try finds its checkpoint, or none.
            if unstored or not await self._transact(chunk, claim.checkpoint(name)):
                unstored += _ids(chunk)
        return unstored

    async def _transact(self, chunk: Sequence[Group], *also: transactions.Part) -> bool:
        """Puts the items of groups; False where it is not known whether that happened."""
        if self._clock() >= self._deadline:
            return False
        parts = []
        for row, *others in chunk:
            parts.append(transactions.put(self._table, row, writable(self._model)))
            parts += [transactions.put(self._table, item) for item in others]
        try:
            await transactions.transact(self._dynamo, *parts, also=also)
        except TransactionFailed:
            raise other_generation(self._model) from None
        except TableMissing:
            raise
        except Unavailable:
            return False
        return True


def grouped(
    product_ids: Sequence[str], rows: Sequence[RequestItem], attributes: Mapping[str, RequestItem]
) -> list[Group]:
    """Rows, each with the item of its attributes, which are by product id."""
    return [
        [row, attributes[product_id]] if product_id in attributes else [row]
        for product_id, row in zip(product_ids, rows, strict=True)
    ]


def _chunks(groups: Sequence[Group]) -> Iterator[tuple[int, Sequence[Group]]]:
    """Groups that fit into one transaction, with the position of the first."""
    start = items = 0
    for position, group in enumerate(groups):
        if items + len(group) > _ONCE_ITEMS:
            yield start, groups[start:position]
            start, items = position, 0
        items += len(group)
    if start < len(groups):
        yield start, groups[start:]


def _ids(chunk: Sequence[Group]) -> list[str]:
    return [group[0]["product_id"]["S"] for group in chunk]
