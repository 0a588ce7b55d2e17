"""An API that is asked for three times what it can answer.

    python -m tests.load.overload --file CATALOGUE.parquet [--rows 20000] [--turns 5]
        [--seconds 5] [--kind json] [--callers 16] [--checkout DIRECTORY]

On an emulator, a Valkey and a worker of its own; the API has one core, and what asks the other. In
each turn wrk finds the peak, with 16 connections that each send a request once the one before is
answered. Then an open loop (`tests.load.open_loop`) sends at 0.7 and at 3 times the peak over 256
connections, as so many callers, whatever is answered. With `--checkout` another tree's API is
measured, by its own `.venv`. The kinds of request are those of `tests.benchmarks.http_search`.

Exits with 1 where at 3 times the peak fewer than 0.9 of it are answered, the p99 of those is over
twice that at 0.7 of the peak, a refusal (503) takes longer than 10 ms at p99, or anything else
happens.
"""

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import Final

import msgspec

from tests.benchmarks.arguments import site_parser
from tests.benchmarks.figures import Report, at_least, at_most
from tests.benchmarks.http_search import ROOT, prepare
from tests.benchmarks.processes import Api, processor_s, serving
from tests.benchmarks.published import read
from tests.benchmarks.sent import (
    CLIENT_CORE,
    output,
    queries_of,
    requests_of,
    run_wrk,
    write_script,
)
from tests.emulators import CREDENTIALS
from tests.faults.site import Site, open_site
from tests.load.open_loop import Outcome

CONNECTIONS: Final = 256
CALM: Final = 0.7
OVER: Final = 3.0
_SHORT: Final = 1.0
"""Seconds of the turn before the first one, which warms up."""


class Load(msgspec.Struct, frozen=True):
    """One load, and the processor time that the API took for it."""

    outcome: Outcome
    processor_s: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.outcome.accepted / self.outcome.seconds


class Turn(msgspec.Struct, frozen=True):
    """One turn."""

    peak: float
    """Answers a second in a closed loop."""
    each_s: float
    """Processor time of the API for each of them."""
    calm: Load
    over: Load


async def measure(script: Path, api: Api, seconds: float, seed: int) -> Turn:
    """The peak, then both loads.

    Raises:
        SystemExit: a request of the closed loop failed.
    """
    before = processor_s(api)
    found = await run_wrk(script, api.port, seconds)
    if found.errors:
        raise SystemExit(f"{found.errors} requests of the closed loop failed")
    each_s = (processor_s(api) - before) / found.requests
    peak = 1e6 / found.each_us
    file = script.with_suffix("")
    calm, over = [
        await _open_loop(file, api, share * peak, seconds, seed) for share in (CALM, OVER)
    ]
    return Turn(peak, each_s, calm, over)


async def _open_loop(file: Path, api: Api, rate: float, seconds: float, seed: int) -> Load:
    words = ["taskset", "-c", str(CLIENT_CORE), sys.executable, "-m", "tests.load.open_loop"]
    words += [str(api.port), str(file), "--rate", str(rate), "--seconds", str(seconds)]
    before = processor_s(api)
    said = await output(*words, "--connections", str(CONNECTIONS), "--seed", str(seed))
    outcome = msgspec.json.decode(said, type=Outcome)
    return Load(outcome, processor_s(api) - before)


def report(turns: list[Turn]) -> int:
    """Prints the figures; the exit status."""
    out = Report()
    out.add("peak, closed loop", [each.peak for each in turns], "a second")
    out.add("peak: processor time", [1e6 * each.each_s for each in turns], "µs")
    for name, loads in (
        (f"{CALM:g} of the peak", [each.calm for each in turns]),
        (f"{OVER:g} times the peak", [each.over for each in turns]),
    ):
        outcomes = [load.outcome for load in loads]
        out.add(f"{name}: answered", [load.rate for load in loads], "a second")
        out.add(f"{name}: refused", [o.refused / o.seconds for o in outcomes], "a second")
        for place, percentile in enumerate(("p50", "p90", "p99")):
            times = [o.accepted_ms[place] for o in outcomes]
            out.add(f"{name}: answered, {percentile}", times, "ms")
        out.add(f"{name}: sent late by, p99", [o.late_ms for o in outcomes], "ms")
    over = [each.over.outcome for each in turns]
    out.add("refused, p50", [o.refused_ms[0] for o in over], "ms")
    out.add("refused, p90", [o.refused_ms[1] for o in over], "ms")
    out.add("refused, p99", [o.refused_ms[2] for o in over], "ms", at_most(10))
    out.add("goodput to peak", [each.over.rate / each.peak for each in turns], target=at_least(0.9))
    spent = [t.over.outcome.answered * t.each_s / t.over.processor_s for t in turns]
    out.add("share of the processor that answers", spent)
    late = [each.over.outcome.accepted_ms[2] / each.calm.outcome.accepted_ms[2] for each in turns]
    out.add(f"p99 to that at {CALM:g} of the peak", late, target=at_most(2))
    wrong = [sum(sum(load.outcome.wrong.values()) for load in (t.calm, t.over)) for t in turns]
    out.add("anything else", wrong, "requests", at_most(0))
    for outcome in (load.outcome for each in turns for load in (each.calm, each.over)):
        if any(outcome.wrong.values()):
            print(outcome.wrong, flush=True)
    return out.end()


async def load(site: Site, checkout: Path, plan: argparse.Namespace) -> int:
    """Serves the checkout's API on what the site has, and measures it; the exit status."""
    rows = dict(list(read(plan.file).items())[: plan.rows])
    tokens = [site.pool.token(sub=f"caller-{number}") for number in range(plan.callers)]
    made = requests_of(rows, queries_of(rows))[plan.kind]
    await prepare(site, rows, checkout)
    os.sched_setaffinity(0, {CLIENT_CORE})
    async with serving(site, 1, checkout) as api:
        script = write_script(site.directory, plan.kind, api.port, tokens, made)
        await measure(script, api, _SHORT, 0)
        turns = [
            await measure(script, api, plan.seconds, seed) for seed in range(1, plan.turns + 1)
        ]
    return report(turns)


async def main(plan: argparse.Namespace) -> int:
    """All of it; the exit status."""
    async with open_site(K9_WATERMARK_LAG_S="5", K9_LEASE_S="180") as site:
        return await load(site, plan.checkout.resolve(), plan)


if __name__ == "__main__":
    parser = site_parser(__doc__, turns=5)
    parser.set_defaults(rows=20_000)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load in a turn")
    parser.add_argument("--kind", choices=("json", "msgpack", "neighbors"), default="json")
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--checkout", type=Path, default=ROOT, help="the tree to measure")
    given = parser.parse_args()
    os.environ |= CREDENTIALS
    sys.exit(asyncio.run(main(given)))
