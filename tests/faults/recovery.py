"""How soon builds go on after Valkey was emptied, and after a worker was killed.

    python -m tests.faults.recovery [--builds 50] [--kills 3]

Two workers with the leases that production has. First FLUSHALL in the middle of so many open
builds, and the time until the last of them has ended. Then a build that takes a while, SIGKILL to
the worker that has it, and the time until it runs again, a few times over. Every build must be
published, and once. Prints the times; exits 1 when a build was lost, or a bound was passed.
"""

import argparse
import asyncio
import os
import sys
import time
from collections import Counter

import numpy as np

from core.models import Build, BuildParameters
from core.settings import Settings
from tests.emulators import CREDENTIALS
from tests.faults.site import WORKERS, Part, Site, open_site
from tests.worker.processes import until

FLUSHED_S_MAX = 60.0
"""All open builds end within this, from FLUSHALL."""
RUNNING_S_MAX = Settings().building.lease_s + 10.0
"""A killed worker's build runs again within this."""
_SECOND = 2
_SLOW_ROWS, _SLOW_K = 6000, 1000
"""A matrix of millions of entries, which takes a while to write."""


async def _store(site: Site, model_version: str, rows: int) -> None:
    vectors = np.random.default_rng(rows).normal(size=(rows, 8)).astype(np.float32)
    entries = [(f"p{number:05d}", vector) for number, vector in enumerate(vectors)]
    for start in range(0, rows, 1000):
        await site.resources.embedding_service.store_batch(
            model_version, entries[start : start + 1000]
        )


async def _ended(site: Site, build_ids: set[str], least: int) -> dict[str, Build]:
    """Waits until so many of these builds have ended."""
    ended: dict[str, Build] = {}
    while len(ended) < least:
        for build_id in build_ids - ended.keys():
            build = await site.resources.builds.get_build(build_id)
            if not build.open:
                ended[build_id] = build
        await asyncio.sleep(0.1)
    return ended


def _lost(site: Site, ended: dict[str, Build]) -> list[str]:
    """What is not as it must be: every one published, and once."""
    said = Counter(line["build_id"] for line in site.logged("build published", *WORKERS))
    wrong = [f"{b.build_id} {b.status}: {b.error}" for b in ended.values() if b.manifest is None]
    return wrong + [f"{b} was published {n} times" for b, n in said.items() if n > 1]


async def flush(site: Site, builds: int) -> list[str]:
    """FLUSHALL in the middle of open builds; what is wrong."""
    names = [f"flushed-{number:03d}" for number in range(builds)]
    for name in names:
        await _store(site, name, 30)
    ids = {
        (await site.resources.build_service.request(name, BuildParameters())).build_id
        for name in names
    }
    before = await _ended(site, ids, builds // 10)
    await site.resources.queue.redis.flushall()
    began = time.monotonic()
    ended = await _ended(site, ids, builds)
    took_s = time.monotonic() - began
    print(f"FLUSHALL with {builds - len(before)} of {builds} builds open")
    print(f"  the last had ended {took_s:.1f} s after it; bound {FLUSHED_S_MAX:g} s", flush=True)
    late = [f"it took {took_s:.1f} s"] if took_s > FLUSHED_S_MAX else []
    return _lost(site, ended) + late


async def _owner(site: Site, build_id: str) -> Part:
    """The worker whose child is at work on a build."""
    while True:
        build = await site.resources.builds.get_build(build_id)
        at_work = [site.parts[name] for name in WORKERS if site.parts[name].children()]
        if build.progress.stage in {"matrix", "files"} and at_work:
            return at_work[0]
        if not build.open:
            raise RuntimeError("the build was over before its worker could be killed")
        await asyncio.sleep(0.05)


async def kill(site: Site, number: int) -> list[str]:
    """SIGKILL to the worker that has a build; what is wrong."""
    name = f"killed-{number}"
    await _store(site, name, _SLOW_ROWS)
    parameters = BuildParameters(matrix_k=_SLOW_K)
    build = await site.resources.build_service.request(name, parameters)
    (await _owner(site, build.build_id)).kill()
    began = time.monotonic()
    await until(site.resources, build.build_id, lambda build: build.fence == _SECOND)
    again_s = time.monotonic() - began
    ended = await _ended(site, {build.build_id}, 1)
    print("SIGKILL to the worker of a build")
    print(f"  it ran again after {again_s:.1f} s; bound {RUNNING_S_MAX:g} s", flush=True)
    late = [f"it took {again_s:.1f} s to run again"] if again_s > RUNNING_S_MAX else []
    return _lost(site, ended) + late


async def run(builds: int, kills: int) -> list[str]:
    """Both; what is wrong."""
    async with open_site() as site:
        wrong = await flush(site, builds)
        for number in range(kills):
            wrong += await kill(site, number)
    for line in wrong:
        print(f"WRONG: {line}")
    return wrong


def main() -> int:
    """Reads the arguments, and runs; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--builds", type=int, default=50)
    parser.add_argument("--kills", type=int, default=3)
    asked = parser.parse_args()
    os.environ |= CREDENTIALS
    return 1 if asyncio.run(run(asked.builds, asked.kills)) else 0


if __name__ == "__main__":
    sys.exit(main())
