"""Reads changed rows, consistently, a round at a time: what is read later is newer."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Final

from core import telemetry
from core.errors import K9Error
from core.models import Embedding

_ROUND_IDS: Final = 200
"""Two calls of DynamoDB's; taking over so many rows is a millisecond or two of the event loop."""
_BACKOFF_FIRST_S: Final = 0.1
_BACKOFF_MAX_S: Final = 5.0

_log = telemetry.logger(__name__)

Found = Mapping[str, Embedding | None]


class _Ask:
    """Someone who waits until all of some rows were read."""

    __slots__ = ("done", "left")

    def __init__(self, left: int) -> None:
        self.left = left
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def arrived(self) -> None:
        self.left -= 1
        if not self.left and not self.done.done():
            self.done.set_result(None)


class Reading:
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
        self._waiting: dict[str, list[_Ask]] = {}
        self._urgent: dict[str, list[_Ask]] = {}
        self._wake = asyncio.Event()
        self._asked = asyncio.Event()
        """Somebody waits for an answer."""

    def hint(self, product_ids: Iterable[str]) -> int:
        """Notes rows to be read soon; the number of those for which there was no room."""
        lost = 0
        for product_id in product_ids:
            if product_id in self._waiting or len(self._waiting) < self._waiting_max:
                self._waiting.setdefault(product_id, [])
            else:
                lost += 1
        self._wake.set()
        return lost

    async def now(self, product_ids: Iterable[str], *, urgent: bool = False) -> None:
        """Returns once rows (each once) were read, later than now, and applied."""
        wanted = list(product_ids)
        if not wanted:
            return
        ask = _Ask(len(wanted))
        queue = self._urgent if urgent else self._waiting
        for product_id in wanted:
            queue.setdefault(product_id, []).append(ask)
        self._wake.set()
        if urgent:
            self._asked.set()
        await ask.done

    async def run(self) -> None:
        """Reads what waits, one round after the other, until cancelled."""
        backoff_s = _BACKOFF_FIRST_S
        while True:
            await self._wake.wait()
            if len(self._waiting) < _ROUND_IDS:
                await self._unless_asked(self._gather_s)
            taken = self._take()
            try:
                rows = await self._read(list(taken))
                found: dict[str, Embedding | None] = dict.fromkeys(taken)
                found.update((row.product_id, row) for row in rows)
                self._apply(found)
            except K9Error as error:
                _log.warning("changed rows not read", error=type(error).__name__, rows=len(taken))
                self._put_back(taken)
                await self._rest(backoff_s)
                backoff_s = min(2 * backoff_s, _BACKOFF_MAX_S)
                continue
            except Exception:
                self._put_back(taken)
                raise
            backoff_s = _BACKOFF_FIRST_S
            for asks in taken.values():
                for ask in asks:
                    ask.arrived()

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

    def _take(self) -> dict[str, list[_Ask]]:
        taken: dict[str, list[_Ask]] = {}
        for queue in (self._urgent, self._waiting):
            while queue and len(taken) < _ROUND_IDS:
                product_id = next(iter(queue))
                taken.setdefault(product_id, []).extend(queue.pop(product_id))
        if not self._urgent and not self._waiting:
            self._wake.clear()
        return taken

    def _put_back(self, taken: dict[str, list[_Ask]]) -> None:
        for product_id, asks in taken.items():
            self._waiting.setdefault(product_id, []).extend(
                ask for ask in asks if not ask.done.done()
            )
        self._wake.set()
