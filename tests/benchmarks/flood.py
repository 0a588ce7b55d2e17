"""A caller above its rate beside one at a steady rate.

    python -m tests.benchmarks.flood [--seconds 10] [--turns 3] [--rate 100] [--quota 50]
        [--flood 1000] [--connections 16] [--rows 5000]

On an emulator, a Valkey and a worker of its own, and an API of two processes on one port, which
have the first core, and all else the second. The steady caller sends searches at `--rate` a second,
whatever becomes of the earlier ones, first alone and then beside the flood, in turns. The flood is
another caller, in a process of its own, which may send `--quota` searches a second, and sends
`--flood` over so many connections; with 0 each sends the next one as soon as the one before is
answered. It has one core together with the steady caller, so that latency grows with what both of
them do there too: with 0 that is most of it.

Printed are p50, p99 and the searches a second of the steady caller in both, in milliseconds; what
the flood was answered; and the processor time of the API for each of its requests. A third part is
beside as many requests without a valid token, the cheapest that there are: what the flood costs no
more than those, HTTP itself costs. Exits 1 where
the steady caller was refused anything, or the flood got more than its quota.
"""

import argparse
import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from http import HTTPStatus
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from tests.api.test_process import client_at
from tests.benchmarks.figures import Report
from tests.benchmarks.stock import published, store
from tests.emulators import CREDENTIALS
from tests.faults.attacks import Target
from tests.faults.callers import Seen, Stack, watch
from tests.faults.questions import answering
from tests.faults.site import Site, open_site

MODEL: Final = "flooded"
DIMENSION: Final = 384
API_CORE, OTHER_CORE = 0, 1
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Flooded(msgspec.Struct, frozen=True):
    """What the flood was answered."""

    seconds: float
    outcomes: dict[str, int]
    """By status."""
    fields: dict[str, str]
    """Of the last refusal: `RateLimit`, `RateLimit-Policy` and `Retry-After`."""


def flood(port: int, token: str, seconds: float, connections: int, rate: float) -> Flooded:
    """Sends so many searches a second over so many connections; with 0 as many as are answered."""
    return asyncio.run(_flood(port, token, seconds, connections, rate))


async def _flood(port: int, token: str, seconds: float, connections: int, rate: float) -> Flooded:
    body = msgspec.json.encode({"vector": [1.0] * DIMENSION})
    head = (
        f"POST /models/{MODEL}/search HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}"
        f"\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    request = head.encode() + body
    outcomes: Counter[str] = Counter()
    fields: dict[str, str] = {}
    began = time.perf_counter()

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        due = began + number / rate if rate else began
        while time.perf_counter() - began < seconds:
            if rate:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                due += connections / rate
            writer.write(request)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
            await reader.readexactly(int(headers["content-length"]))
            status = lines[0].split()[1]
            outcomes[status] += 1
            if status == str(HTTPStatus.TOO_MANY_REQUESTS.value):
                for name in ("ratelimit", "ratelimit-policy", "retry-after"):
                    fields[name] = headers[name]
        writer.close()

    async with asyncio.TaskGroup() as group:
        for number in range(connections):
            group.create_task(one(number))
    return Flooded(time.perf_counter() - began, dict(outcomes), fields)


def processor_s(pids: Sequence[int]) -> float:
    """The processor time that these processes have taken."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in stats) / _TICKS


def _pin(pids: Sequence[int], core: int) -> None:
    """Leaves one core to all threads of these processes."""
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {core})


class Part(msgspec.Struct, frozen=True):
    """What the steady caller saw, and the flood beside it."""

    seen: Seen
    processor_s: float
    """Of the API."""
    flooded: Flooded | None = None


ALONE, OVER, STRANGER = "alone", "beside the flood", "beside one without a token"
Turn = dict[str, Part]


async def measure(site: Site, plan: argparse.Namespace) -> list[Turn]:
    """Each turn: the steady caller alone, beside the flood, and beside one of 401s."""
    port = int(site.api_url.rpartition(":")[2])
    api = site.parts["api"]
    assert api.pid is not None
    pids = [api.pid, *api.children()]
    _pin(pids, API_CORE)
    token = site.pool.token(sub="flood")
    target = Target(port, token, token, MODEL, DIMENSION, "", 0)
    stack = Stack(target, site.pool.token(sub="steady"), "", api.pid, (), lambda _hung: None)
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(1, get_context("spawn")) as process:

        async def part(token: str | None) -> Part:
            before = processor_s(pids)
            if token is None:
                seen = await watch(stack, plan.seconds, plan.rate)
                return Part(seen, processor_s(pids) - before)
            flooding = loop.run_in_executor(
                process, flood, port, token, plan.seconds, plan.connections, plan.flood
            )
            seen = await watch(stack, plan.seconds, plan.rate)
            flooded = await flooding
            return Part(seen, processor_s(pids) - before, flooded)

        await loop.run_in_executor(process, flood, port, token, 0.1, 1, 0)  # it has started
        await watch(stack, 2, plan.rate)
        parts = {ALONE: None, OVER: token, STRANGER: "none"}
        return [{name: await part(sent) for name, sent in parts.items()} for _ in range(plan.turns)]


async def main(plan: argparse.Namespace) -> int:
    """Prints what both were answered; the exit status."""
    os.sched_setaffinity(0, {OTHER_CORE})
    rows = np.random.default_rng(1).standard_normal((plan.rows, DIMENSION)).astype(np.float32)
    rates = f"caller:flood={plan.quota}/1,*={20 * plan.rate}/1"
    async with open_site(workers=["worker"], K9_API_PROCESSES="2", K9_RATES=rates) as site:
        await store(site.resources, MODEL, {f"p{n}": row for n, row in enumerate(rows)})
        build = await published(site.resources, MODEL)
        port = int(site.api_url.rpartition(":")[2])
        for _ in range(8):  # connections, which come to either process
            async with client_at(port, site.pool.token(sub="ready")) as client:
                await answering(client, build.build_id)
        turns = await measure(site, plan)
    report = Report()
    for name in turns[0]:
        seen = [turn[name].seen for turn in turns]
        report.add(f"steady caller {name}, p50", [each.p50_ms for each in seen], "ms")
        report.add(f"steady caller {name}, p99", [each.p99_ms for each in seen], "ms")
        answered = [each.outcomes.get("200", 0) / plan.seconds for each in seen]
        report.add(f"steady caller {name}", answered, "searches a second")
        floods = [turn[name].flooded for turn in turns]
        if sent := [each for each in floods if each is not None]:
            for status in sorted({status for each in sent for status in each.outcomes}):
                counts = [each.outcomes.get(status, 0) / each.seconds for each in sent]
                report.add(f"flood, answered {status}", counts, "requests a second")
            more = [turn[name].processor_s - turn[ALONE].processor_s for turn in turns]
            costs = [1e6 * s / sum(f.outcomes.values()) for s, f in zip(more, sent, strict=True)]
            report.add("flood, of the API's processor", costs, "us a request")
    report.end()
    over = [turn[OVER].flooded for turn in turns]
    print(f"the last refusal: {over[-1].fields if over[-1] else {}}")
    steady = all(part.seen.share == 1 for turn in turns for part in turn.values())
    within = all(
        each is not None and each.outcomes["200"] <= plan.quota * (1 + each.seconds) + 1
        for each in over
    )
    return 0 if steady and within else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rate", type=int, default=100)
    parser.add_argument("--quota", type=int, default=50)
    parser.add_argument("--flood", type=int, default=1000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rows", type=int, default=5000)
    os.environ |= CREDENTIALS
    sys.exit(asyncio.run(main(parser.parse_args())))
