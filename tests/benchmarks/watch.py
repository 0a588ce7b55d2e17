"""What is looked at while a benchmark runs: memory of a process, delays of event loops."""

import asyncio
from pathlib import Path
from time import perf_counter, process_time
from typing import Final

import aiohttp
import msgspec

_MEMORY_EVERY_S: Final = 0.1
_METRICS_EVERY_S: Final = 1.0
_LONGEST: Final = "k9_event_loop_delay_longest_seconds "


class Memory(msgspec.Struct, frozen=True):
    """Of a process at one moment, in bytes.

    By its proportional set size: a page that several processes have mapped counts for each by its
    share, so that the sizes of all processes of a machine add up.
    """

    moment: float
    whole: int
    """Pages of mapped files too, as far as they are in memory; the system may drop those."""
    anonymous: int
    """What nothing but the process holds."""


class Watch:
    """Looks at processes now and then."""

    def __init__(self, pid: int, metrics: dict[str, str]) -> None:
        """At the memory of `pid`, and at metrics: their addresses by the name of the process."""
        self._rollup = Path(f"/proc/{pid}/smaps_rollup")
        self._metrics = metrics
        self._memory: list[Memory] = []
        self._delays: dict[str, list[tuple[float, float]]] = {name: [] for name in metrics}
        """When, and the longest delay of the 15 s before, in seconds."""
        self._used: list[tuple[float, float]] = []
        """When, and the processor time of this process until then."""

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_memory())
            for name, url in self._metrics.items():
                group.create_task(self._watch_delays(name, url))

    def memory(self, since: float, until: float) -> Memory:
        """The peaks of a time, each figure's by itself."""
        seen = [memory for memory in self._memory if since <= memory.moment <= until]
        whole, anonymous = (m.whole for m in seen), (m.anonymous for m in seen)
        return Memory(until, max(whole, default=0), max(anonymous, default=0))

    def delay(self, name: str, since: float, until: float) -> float:
        """The longest delay of an event loop in a time and the 15 s before it, in seconds."""
        seen = self._delays[name]
        end = until + _METRICS_EVERY_S
        return max((late_s for at, late_s in seen if since <= at <= end), default=0.0)

    def own_share(self, since: float, until: float) -> float:
        """How much of a core this process itself took in a time."""
        seen = [(at, used) for at, used in self._used if since <= at <= until]
        if len(seen) < 2:
            return 0.0
        (began, first), (ended, last) = seen[0], seen[-1]
        return (last - first) / (ended - began)

    async def _watch_memory(self) -> None:
        while True:
            self._memory.append(_memory(self._rollup))
            self._used.append((perf_counter(), process_time()))
            await asyncio.sleep(_MEMORY_EVERY_S)

    async def _watch_delays(self, name: str, url: str) -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                async with session.get(url) as reply:
                    text = await reply.text()
                found = [line for line in text.splitlines() if line.startswith(_LONGEST)]
                self._delays[name].append((perf_counter(), float(found[0][len(_LONGEST) :])))
                await asyncio.sleep(_METRICS_EVERY_S)


def _memory(rollup: Path) -> Memory:
    sizes = {}
    for line in rollup.read_text(encoding="ascii").splitlines()[1:]:
        name, _, rest = line.partition(":")
        sizes[name] = 1024 * int(rest.split()[0])
    return Memory(perf_counter(), sizes["Pss"], sizes["Pss_Anon"])
