"""An index swapped under load: what fails, which version answers, how long it takes, memory.

    python -m tests.benchmarks.swap [--file CATALOGUE.parquet] [--rows 100000] [--clients 16]
        [--swaps 4] [--seconds 20] [--think-ms 5] [--fresh]

On an emulator, a Valkey, a worker and an API of its own. A first build is published and some rows
change; then clients ask, half searches and half neighbours, while a second build is published, and
while an operator promotes the first and the second in turn. They rest while the second index is
made: on a machine of few cores that would be measured, and not the swap.

For each swap it prints the latency in its window, which is from the answer of the promote (or from
the build's end) until 2 s after the last answer of the old version, and that of the `--seconds`
before it; and the API's memory as its proportional set size, in all (mapped files as far as they
are in memory, which the system may drop) and anonymous. At the end the longest delays of the event
loops, each of a time and the 15 s before it.

Afterwards, at rest, each version is asked every question once more, and its scores are held against
numpy on the rows that it answers from. Every answer under load must be one of those, whole, from
the build that it names. So that it can fail, what is asked for is where rows have changed, and of
what changed since a build only deletions are applied (the limit of changes is set to 1): the
versions answer nearly all questions differently. With `--fresh` all changes are applied, as in
production, and it is the index's approximation alone that tells the versions apart.

Exits 1 when a request failed, or an answer was from no single version.
"""

import argparse
import asyncio
import os
import sys
from http import HTTPStatus
from pathlib import Path
from time import perf_counter, time
from typing import Final

import aiohttp
import msgspec
import numpy as np

from core.index.manifest import Manifest
from core.models import Build, BuildParameters, parse_timestamp
from core.stalls import WINDOW_S
from tests.benchmarks.answers import Version, telling, wrong_at_rest, wrong_under_load
from tests.benchmarks.asking import Clients, Question, questions_of
from tests.benchmarks.figures import Report
from tests.benchmarks.published import SAMPLE, read
from tests.benchmarks.stock import Catalogue, few_at_once, published, store
from tests.benchmarks.visible import line
from tests.benchmarks.watch import Memory, Watch
from tests.emulators import CREDENTIALS, free_port
from tests.faults.site import Site, open_site

MODEL: Final = "swapped"
QUESTIONS: Final = 2000
AFTER_S: Final = 2.0
MIB: Final = 2**20
CHANGED: Final = 0.02
"""Share of the rows that are other in the second build; a tenth as many are deleted, or new."""
LATE: Final = ("files", "compare", "upload", "publish")
"""Stages of a build that take no processor to speak of."""
TELLING: Final = 0.8
"""Share of the questions that must tell the versions apart."""


class Plan(msgspec.Struct, frozen=True):
    """What was asked for."""

    file: Path
    rows: int
    clients: int
    swaps: int
    seconds: float
    think_s: float
    fresh: bool


class Swap(msgspec.Struct, frozen=True):
    """One swap, by `perf_counter`."""

    before: float
    """From here on it was at rest."""
    began: float
    asked: float
    """When the new version was made current."""
    first: float
    """When its first answer came."""
    ended: float


class Run:
    """One run."""

    def __init__(self, plan: Plan, site: Site, session: aiohttp.ClientSession) -> None:
        self.plan = plan
        self.site = site
        self.session = session
        self.builds: list[Build] = []
        self.built: list[tuple[float, float]] = []
        self.rows: list[Catalogue] = []
        """What each build answers from."""
        self.changed = 0
        """Rows that are other than the first build has them."""
        self.swaps: list[Swap] = []

    # --- what is asked of the site --------------------------------------------------------------

    async def build(self) -> Build:
        """Has a build made, and waits for its end."""
        began = perf_counter()
        build = await published(self.site.resources, MODEL, BuildParameters(force=True))
        self.builds.append(build)
        self.built.append((began, perf_counter()))
        return build

    async def in_use(self, build_id: str, *fresh: int | None) -> None:
        """Waits until a build answers, and says that so many changed rows are beside it."""
        kept = next(name for name in self.rows[-1] if name in self.rows[0])
        body = {"product_id": kept, "k": 1}
        async with asyncio.timeout(300):
            while True:
                async with self.session.post(f"/models/{MODEL}/search", json=body) as reply:
                    index = (await reply.json()).get("index", {})
                if index.get("build_id") == build_id and index["fresh"] in fresh:
                    return
                await asyncio.sleep(0.1)

    async def promote(self, build_id: str) -> None:
        """Makes an earlier build current."""
        body = {"build_id": build_id}
        async with self.session.post(f"/models/{MODEL}/promote", json=body) as reply:
            if reply.status != 200:
                raise SystemExit(f"not promoted: {await reply.text()}")

    def fresh_beside(self, build: Build) -> tuple[int | None, ...]:
        """How many changed rows a build's answers tell of, once all that is to be read is read."""
        if not self.plan.fresh:
            # Even the second may be over its limit: deletes of the last minute before it count.
            return (None,) if build is self.builds[0] else (0, None)
        return (self.changed,) if build is self.builds[0] else (0,)

    # --- the run --------------------------------------------------------------------------------

    async def prepare(self) -> list[Question]:
        """The first build, and rows that change after it; the questions."""
        resources = self.site.resources
        before = dict(list(read(self.plan.file).items())[: self.plan.rows])
        began = perf_counter()
        await store(resources, MODEL, before)
        print(f"{len(before):,} rows stored in {perf_counter() - began:.0f} s")
        await asyncio.sleep(WINDOW_S)  # what the processes' start took is no part of a build
        self.rows = [before, before]
        first = await self.build()
        await self.in_use(first.build_id, 0)
        await self.promote(first.build_id)  # pinned: no build is requested for what changes now
        written, gone = changes(before)
        await store(resources, MODEL, written)
        delete = resources.embedding_service.delete_embedding
        await few_at_once([delete(MODEL, product_id) for product_id in gone])
        after = {name: row for name, row in (before | written).items() if name not in gone}
        left = {name: row for name, row in before.items() if name not in gone}
        self.rows = [after if self.plan.fresh else left, after]
        same = (i in before and np.array_equal(row, before[i]) for i, row in written.items())
        self.changed = len(written) - sum(same) + len(gone)
        await self.in_use(first.build_id, *self.fresh_beside(first))
        await self._hidden(gone)
        return questions_of(MODEL, before, after, QUESTIONS)

    async def _hidden(self, gone: set[str]) -> None:
        """Waits until the deletions, which came last, are known."""
        async with asyncio.timeout(300):
            for product_id in gone:
                body, status = {"product_id": product_id, "k": 1}, 0
                while status != HTTPStatus.NOT_FOUND:
                    async with self.session.post(f"/models/{MODEL}/search", json=body) as reply:
                        status = reply.status
                    await asyncio.sleep(0.001 if status == HTTPStatus.NOT_FOUND else 0.1)

    async def swap_all(self, clients: Clients) -> None:
        """The second build under load, and then the two in turn."""
        with clients.asking(self.plan.clients):
            await asyncio.sleep(5)  # connections are made, and what is asked for is in memory
            for number in range(self.plan.swaps):
                before = perf_counter()
                await asyncio.sleep(self.plan.seconds)
                began = perf_counter()
                if number == 0:
                    build = await self._built(clients)
                    ended = parse_timestamp(build.ended_at or "").timestamp()
                    asked = perf_counter() - (time() - ended)
                else:
                    build = self.builds[(number + 1) % 2]
                    await self.promote(build.build_id)
                    asked = perf_counter()
                old = self.builds[number % 2]
                first = await self._swapped(clients, old.build_id, build.build_id, asked)
                self.swaps.append(Swap(before, began, asked, first, perf_counter()))

    async def _built(self, clients: Clients) -> Build:
        """The second build, asked through from when its files are made."""
        building = asyncio.create_task(self.build())
        clients.resting = True
        while clients.resting and not building.done():
            await asyncio.sleep(0.2)
            found = await self.site.resources.builds.list_open()
            clients.resting = not any(build.progress.stage in LATE for build in found)
        clients.resting = False
        return await building

    async def _swapped(self, clients: Clients, old: str, new: str, asked: float) -> float:
        """Waits until all answers come from the new build; when the first one came."""
        first = 0.0
        async with asyncio.timeout(300):
            while not first or perf_counter() < clients.last_of[old] + AFTER_S:
                await asyncio.sleep(0.005)
                if not first and clients.last_of.get(new, 0.0) > asked:
                    first = clients.last_of[new]
        return first

    async def versions(self, clients: Clients) -> dict[str, Version]:
        """What each build answers with nothing else going on."""
        found = {}
        for build, rows in zip(self.builds, self.rows, strict=True):
            await self.promote(build.build_id)
            await self.in_use(build.build_id, *self.fresh_beside(build))
            found[build.build_id] = Version(rows, await clients.all_once())
        return found


def changes(rows: Catalogue) -> tuple[Catalogue, set[str]]:
    """What is written anew, as other rows are now or between two of them, and what is deleted."""
    order = np.random.default_rng(3).permutation(list(rows)).tolist()
    many = int(CHANGED * len(order))
    few = many // 10
    gone, moved = order[:few], order[few : few + many]
    written = {name: rows[other] for name, other in zip(moved, [*moved[1:], moved[0]], strict=True)}
    for name, other in zip(gone, moved, strict=False):
        written[f"new/{name}"] = (rows[name] + rows[other]) / np.float32(2)
    return written, set(gone)


# --- what it came to ----------------------------------------------------------------------------


def report(run: Run, clients: Clients, watch: Watch) -> None:
    """Prints the figures."""
    manifest = msgspec.convert(run.builds[-1].manifest, Manifest)
    size = manifest.resident_bytes
    print(
        f"{manifest.counts.rows:,} rows, {manifest.index.family}: {size / MIB:.0f} MiB an index; "
        f"{run.plan.clients} clients, {1000 * run.plan.think_s:g} ms between two requests of each"
    )
    ratios = []
    for number, swap in enumerate(run.swaps):
        how = "promoted" if number else "published"
        print(
            f"swap {number + 1}, {how}: first answer after {swap.first - swap.asked:.2f} s, "
            f"the old version's last {swap.ended - AFTER_S - swap.first:+.3f} s from there"
        )
        before = clients.seconds(swap.before, swap.began)
        within = clients.seconds(swap.asked, swap.ended)
        ratios.append(p99(within) / p99(before))
        print(line("  before", before))
        if not number:
            print(line("  while it is uploaded", clients.seconds(swap.began, swap.asked)))
        print(line("  window, until its first answer", clients.seconds(swap.asked, swap.first)))
        print(line("  window, from then on", clients.seconds(swap.first, swap.ended)))
        print(line("  window", within) + f"   p99 x {ratios[-1]:.2f}")
        at_rest = watch.memory(swap.before, swap.began)
        print(f"  memory before: {told(at_rest, size)}")
        print(f"  memory at most: {told(watch.memory(swap.asked, swap.ended), size)}")
    Report().add("p99 in the window to before", ratios)
    times = {
        "first build, no load": run.built[0],
        "load alone": (run.swaps[0].before, run.swaps[0].began),
        "second build": run.built[1],
    } | {f"swap {n + 1}": (swap.asked, swap.ended) for n, swap in enumerate(run.swaps)}
    for name, (since, until) in times.items():
        api, worker = (1000 * watch.delay(part, since, until) for part in ("api", "worker"))
        print(f"longest delay, {name:<22} API {api:6.1f} ms   worker {worker:6.1f} ms")
    share = watch.own_share(run.swaps[0].before, run.swaps[-1].ended)
    print(f"the clients together took {share:.2f} of a core")


def p99(seconds: list[float]) -> float:
    """The 99th percentile."""
    return float(np.quantile(seconds, 0.99))


def told(memory: Memory, index_bytes: int) -> str:
    """Memory in MiB, and in sizes of one index."""
    return (
        f"{memory.whole / MIB:6.0f} MiB in all ({memory.whole / index_bytes:.2f} of an index), "
        f"{memory.anonymous / MIB:6.0f} MiB anonymous"
    )


def verdict(
    clients: Clients, versions: dict[str, Version], questions: list[Question], *, fresh: bool
) -> bool:
    """Prints what failed and what was wrong; whether nothing was."""
    told_apart = telling(versions)
    wrong = wrong_at_rest(versions, questions) + wrong_under_load(versions, clients.given)
    statuses = sorted({asked.status for asked in clients.asked})
    counts = {status: sum(a.status == status for a in clients.asked) for status in statuses}
    print(f"requests by status: {counts}")
    print(f"answers: {len(clients.given)} different ones to {len(questions)} questions,", end=" ")
    print(f"of which {told_apart:.0%} tell the versions apart; wrong: {len(wrong)}")
    lines = [f"{count} x {failure}" for failure, count in clients.failures.items()] + wrong
    if told_apart < TELLING and not fresh:
        lines.append("the versions answer too much alike for this to show anything")
    for text in lines[:20]:
        print(f"WRONG: {text}")
    return not lines


async def main(plan: Plan) -> bool:
    """Runs, and prints; whether nothing failed."""
    ports = {"api": free_port(), "worker": free_port()}
    environ = {
        "K9_METRICS_PORT": str(ports["api"]),
        "K9_WORKER_METRICS_PORT": str(ports["worker"]),
        "K9_LOOP_PROBE_S": "0.01",
        # The emulator answers one at a time: a heartbeat waits behind the pages of a large pull.
        "K9_LEASE_S": "180",
        # All is on one clock, and nobody writes while a build begins: it need not reach back.
        "K9_WATERMARK_LAG_S": "5",
    }
    if not plan.fresh:
        environ["K9_DELTA_ROWS_HARD"] = "1"
    async with open_site(**environ) as site:
        await site.parts["worker-1"].stop()  # one is enough, and has the metrics to itself
        headers = {"Authorization": f"Bearer {site.pool.token('operators')}"}
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            site.api_url, headers=headers, connector=connector
        ) as session:
            metrics = {name: f"http://127.0.0.1:{port}/metrics" for name, port in ports.items()}
            await answering(session, metrics)
            watch = Watch(site.parts["api"].pid or 0, metrics)
            watching = asyncio.create_task(watch.run())
            run = Run(plan, site, session)
            questions = await run.prepare()
            clients = Clients(session, questions, plan.think_s)
            await run.swap_all(clients)
            report(run, clients, watch)
            good = verdict(clients, await run.versions(clients), questions, fresh=plan.fresh)
            watching.cancel()
            return good


async def answering(session: aiohttp.ClientSession, metrics: dict[str, str]) -> None:
    """Returns once the API and all metrics answer."""
    async with asyncio.timeout(60):
        for url in ("/health/live", *metrics.values()):
            while True:
                try:
                    async with session.get(url) as reply:
                        reply.raise_for_status()
                        break
                except aiohttp.ClientError:
                    await asyncio.sleep(0.1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--file", type=Path, default=SAMPLE)
    parser.add_argument("--rows", type=int, default=100_000, help="of the file, at the most")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--swaps", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0, help="at rest before each swap")
    parser.add_argument("--think-ms", type=float, default=5.0, help="between two of a client's")
    parser.add_argument("--fresh", action="store_true", help="apply changes since the builds")
    given = parser.parse_args()
    os.environ |= CREDENTIALS
    asked_for = Plan(
        given.file,
        given.rows,
        given.clients,
        given.swaps,
        given.seconds,
        given.think_ms / 1000,
        given.fresh,
    )
    sys.exit(0 if asyncio.run(main(asked_for)) else 1)
