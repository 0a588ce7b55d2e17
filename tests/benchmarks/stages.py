"""Where the time of a search over HTTP goes, step by step.

    python -m tests.benchmarks.stages --file CATALOGUE.parquet --py-spy ENVIRONMENT/bin/py-spy
        [--rows 100000] [--turns 3] [--seconds 10] [--kind json]

On an emulator, a Valkey and a worker of its own. The API runs on one core, and wrk (Debian's
package) with 16 connections on another, beside py-spy (PyPI), which looks at the API 250 times a
second. A look counts for the step that the innermost function of `STEPS` belongs to. The looks of
a step, as a share of all, times the processor time of a request, are its microseconds. That is of
the same turn, so it has what py-spy's stops cost.
"""

import argparse
import asyncio
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Final

from tests.benchmarks.arguments import existing, site_parser
from tests.benchmarks.figures import Report
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

STEPS: Final = {
    "event loop, kernel's part of reading": ("Runner.run",),
    "HTTP parsed": ("HttpProtocol.data_received",),
    "headers, request id": ("context_of", "routed_path", "request_id_of"),
    "token": ("Authenticator.caller",),
    "admission": ("RequestContext.begin_search", "RequestContext.enter", "RequestContext.close"),
    "body decoded": ("Body.decoding",),
    "vector to float32, checked": ("floats", "check_all", "check_options"),
    "query in float64, its norm": ("prepare_one",),
    "FAISS": ("Searcher.candidates",),
    "all rows scored": ("Searcher._scan",),
    "ranked again in float64": ("Searcher.rerank",),
    "product ids, scores": ("Segment._hits",),
    "neighbours from the matrix": ("Segment.matrix_neighbors",),
    "answer encoded": ("encoded",),
    "reply sent": ("ResponseSender.send_reply",),
    "metrics": ("Meter.record",),
}
"""Step → the functions that it is; what is in none of them is the calls between."""
_BETWEEN: Final = "calls between"
_RATE: Final = 250
_FUNCTION: Final = re.compile(r"(\S+) \(")


def steps_of(recorded: Path) -> Counter[str]:
    """Step → how many looks, from py-spy's raw format: a stack and its number of looks a line."""
    step_of = {name: step for step, names in STEPS.items() for name in names}
    looks: Counter[str] = Counter()
    for line in recorded.read_text(encoding="utf-8").splitlines():
        stack, _, count = line.rpartition(" ")
        names = [found[1] for frame in stack.split(";") if (found := _FUNCTION.match(frame))]
        if "Runner.run" not in names:
            continue  # another thread
        inner = next(name for name in reversed(names) if name in step_of)
        within = inner != "Runner.run" or names[-1] == inner
        looks[step_of[inner] if within else _BETWEEN] += int(count)
    return looks


async def measure(script: Path, api: Api, plan: argparse.Namespace, to: Path) -> dict[str, float]:
    """Microseconds of each step in one turn, and of all together."""
    pid, *_ = api.processes()
    words = [str(plan.py_spy), "record", "--pid", str(pid), "--rate", str(_RATE)]
    words += ["--duration", str(round(plan.seconds)), "--format", "raw", "--output", str(to)]
    before = processor_s(api)
    sent, _ = await asyncio.gather(
        run_wrk(script, api.port, plan.seconds, plan.kind),
        output("taskset", "-c", str(CLIENT_CORE), *words),
    )
    each_us = 1e6 * (processor_s(api) - before) / sent.requests
    looks = steps_of(to)
    total = looks.total()
    found = {step: each_us * looks[step] / total for step in (*STEPS, _BETWEEN) if looks[step]}
    return found | {"all of a request": each_us}


async def load(site: Site, plan: argparse.Namespace) -> int:
    """Serves what the site has, and measures it; the exit status."""
    rows = dict(list(read(plan.file).items())[: plan.rows])
    made = requests_of(rows, queries_of(rows))[plan.kind]
    await prepare(site, rows, ROOT)
    os.sched_setaffinity(0, {CLIENT_CORE})
    async with serving(site, 1) as api:
        script = write_script(site.directory, plan.kind, api.port, site.pool.token(), made)
        await run_wrk(script, api.port, 2, plan.kind)
        to = site.directory / "stacks"
        turns = [await measure(script, api, plan, to) for _ in range(plan.turns)]
    report = Report()
    for step in turns[0]:
        report.add(step, [turn.get(step, 0.0) for turn in turns], "µs")
    return report.end()


async def main(plan: argparse.Namespace) -> int:
    """All of it; the exit status."""
    async with open_site(K9_WATERMARK_LAG_S="5", K9_LEASE_S="180") as site:
        return await load(site, plan)


if __name__ == "__main__":
    parser = site_parser(__doc__, turns=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each turn")
    kinds = ("json", "msgpack", "product id", "beyond", "neighbors")
    parser.add_argument("--kind", choices=kinds, default="json")
    parser.add_argument("--py-spy", type=existing, required=True, help="its command")
    given = parser.parse_args()
    os.environ |= CREDENTIALS
    sys.exit(asyncio.run(main(given)))
