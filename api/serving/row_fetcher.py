"""Reads changed rows, consistently, a round at a time: what is read later is newer."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Final

from core import telemetry
from core.errors import K9Error, Unavailable
from core.models import Embedding

_ROUND_IDS: Final = 200
"""Two calls of DynamoDB's; taking over so many rows is a millisecond or two of the event loop."""
_BACKOFF_FIRST_S: Final = 0.1
_BACKOFF_MAX_S: Final = 5.0

_log = telemetry.logger(__name__)

Found = Mapping[str, Embedding | None]


class _Ask:
    """Someone who waits until all of some rows were read."""

    __slots__ = ("done", "left", "urgent")

    def __init__(self, left: int, *, urgent: bool) -> None:
        self.left = left
        self.urgent = urgent
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def arrived(self) -> None:
        self.left -= 1
        if not self.left and not self.done.done():
            self.done.set_result(None)


_Reasons = list[_Ask | None]
"""Why a row is to be read: those who wait for it, and None for a hint."""


class RowFetcher:
    """The rows of one model version that wait to be read."""

    def __init__(
        self,
        read: Callable[[list[str]], Awaitable[list[Embedding]]],
        apply: Callable[[Found], None],
        *,
        gather_s: float,
        waiting_max: int,
    ) -> None:
        """Nothing is read before `run`.

        Args:
            read: The rows of these ids as they are now.
            apply: Takes what was found; None for a row that is not there.
            gather_s: How long further ids are waited for.
            waiting_max: Ids that may wait because of hints.
        """
        self._read = read
        self._apply = apply
        self._gather_s = gather_s
        self._waiting_max = waiting_max
        self._waiting: dict[str, _Reasons] = {}
        self._urgent: dict[str, _Reasons] = {}
        self._wake = asyncio.Event()
        self._asked = asyncio.Event()
        """Somebody waits for an answer."""
        self._asks: set[_Ask] = set()
        self._closed = False

    def close(self) -> None:
        """Fails all who wait, now and later: nothing will be read any more."""
        self._closed = True
        for ask in self._asks:
            if not ask.done.done():
                ask.done.set_exception(Unavailable("changed rows are not read any more"))

    def hint(self, product_ids: Iterable[str]) -> int:
        """Notes rows to be read soon; the number of those for which there was no room."""
        lost = 0
        for product_id in product_ids:
            reasons = self._waiting.get(product_id)
            if reasons is not None:
                if None not in reasons:
                    reasons.append(None)
            elif len(self._waiting) < self._waiting_max:
                self._waiting[product_id] = [None]
            else:
                lost += 1
        self._wake.set()
        return lost

    async def now(self, product_ids: Iterable[str], *, urgent: bool = False) -> None:
        """Returns once rows (each once) were read, later than now, and applied.

        Raises:
            Unavailable: it was closed.
        """
        wanted = list(product_ids)
        if self._closed:
            raise Unavailable("changed rows are not read any more")
        if not wanted:
            return
        ask = _Ask(len(wanted), urgent=urgent)
        queue = self._urgent if urgent else self._waiting
        for product_id in wanted:
            queue.setdefault(product_id, []).append(ask)
        self._wake.set()
        if urgent:
            self._asked.set()
        self._asks.add(ask)
        try:
            await ask.done
        finally:
            self._asks.discard(ask)

    async def run(self) -> None:
        """Reads what waits, one round after the other, until cancelled."""
        backoff_s = _BACKOFF_FIRST_S
        while True:
            await self._wake.wait()
            if len(self._waiting) < _ROUND_IDS:
                await self._unless_asked(self._gather_s)
            taken = self._take()
            try:
                await self._round(list(taken))
            except K9Error as error:
                _log.warning("changed rows not read", error=type(error).__name__, rows=len(taken))
                self._put_back(taken)
                await self._rest(backoff_s)
                backoff_s = min(2 * backoff_s, _BACKOFF_MAX_S)
                continue
            except Exception as error:  # noqa: BLE001 - one row must not hold up all others for ever
                _log.error("a changed row is amiss", rows=len(taken), exc_info=error)
                await self._one_by_one(taken)
            backoff_s = _BACKOFF_FIRST_S
            for reasons in taken.values():
                for ask in reasons:
                    if ask is not None:
                        ask.arrived()

    async def _round(self, product_ids: list[str]) -> None:
        if not product_ids:
            return
        found: dict[str, Embedding | None] = dict.fromkeys(product_ids)
        found.update((row.product_id, row) for row in await self._read(product_ids))
        self._apply(found)

    async def _one_by_one(self, taken: dict[str, _Reasons]) -> None:
        """Reads a round in which something failed that no other try would mend.

        What fails alone is given up: those who wait for it go on to wait for what they ask of it.
        """
        for product_id in list(taken):
            try:
                await self._round([product_id])
            except K9Error:
                self._put_back({product_id: taken.pop(product_id)})
            except Exception as error:  # noqa: BLE001 - as above
                _log.error("a changed row cannot be read", product_id=product_id, exc_info=error)

    async def _rest(self, seconds: float) -> None:
        """Waits after a failure; after a short while no longer than nobody waits for an answer."""
        await asyncio.sleep(_BACKOFF_FIRST_S)
        await self._unless_asked(seconds - _BACKOFF_FIRST_S)

    async def _unless_asked(self, seconds: float) -> None:
        """Waits, but not while somebody waits for an answer."""
        self._asked.clear()
        if not self._urgent:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._asked.wait()

    def _take(self) -> dict[str, _Reasons]:
        """The rows of the next round; without those that nobody waits for any more."""
        taken: dict[str, _Reasons] = {}
        for queue in (self._urgent, self._waiting):
            while queue and len(taken) < _ROUND_IDS:
                product_id = next(iter(queue))
                reasons = _standing(queue.pop(product_id))
                if reasons:
                    taken.setdefault(product_id, []).extend(reasons)
        if not self._urgent and not self._waiting:
            self._wake.clear()
        return taken

    def _put_back(self, taken: dict[str, _Reasons]) -> None:
        """Whoever wants an answer now goes first again."""
        for product_id, reasons in taken.items():
            for ask in _standing(reasons):
                queue = self._urgent if ask is not None and ask.urgent else self._waiting
                queue.setdefault(product_id, []).append(ask)
        if self._urgent or self._waiting:
            self._wake.set()


def _standing(reasons: _Reasons) -> _Reasons:
    """Those that still hold: a hint, and who has not gone."""
    return [ask for ask in reasons if ask is None or not ask.done.done()]
