"""Builds under a storm of SIGKILLs: every one ends, none is lost, none is half-served.

    python -m tests.faults.storm [--builds 1000] [--models 50] [--kills 100] [--seed 1]

Starts the emulator, Valkey, two workers and an API of its own, requests builds of small models, and
kills workers, their children, Valkey and the API at random moments, by a schedule that the seed
decides. Meanwhile searches go on, and every answer is held against what was stored. Prints what was
injected and what was seen; exits 1 when anything was lost.
"""

import argparse
import asyncio
import os
import random
import sys
import time
from collections import Counter
from typing import Any

import aiohttp
import numpy as np

from core.errors import BuildConflict, EmptyModel, Unavailable
from core.models import Build, BuildParameters
from tests.emulators import CREDENTIALS
from tests.faults.site import WORKERS, Site, open_site

ROWS, DIMENSION = 30, 4
_ASKED, _K = 3, 5
"""The product of every model whose neighbours are asked for, and how many of them."""
_WAYS = {"worker-0": 3, "worker-1": 3, "child-0": 4, "child-1": 4, "valkey": 1, "api": 1}
"""What is killed, and how often against the others."""
ENDED = ("published", "failed", "cancelled")


class Storm:
    """One run."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site = site
        self.resources = site.resources
        self.parts = site.parts
        self.random = random.Random(seed)
        self.injected: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.requested: dict[str, str] = {}
        """Build → model version."""
        self.served: set[str] = set()
        self.nearest: dict[str, list[tuple[str, float]]] = {}
        """Model version → the neighbours of its product `-p3`, and their cosines."""

    @property
    def killed(self) -> int:
        """SIGKILLs so far."""
        return sum(self.injected[way] for way in _WAYS)

    async def fill(self, models: int) -> list[str]:
        """Stores the rows of every model."""
        names = [f"storm-{number:03d}" for number in range(models)]
        for number, name in enumerate(names):
            vectors = np.random.default_rng(number).normal(size=(ROWS, DIMENSION))
            rows = [(f"{name}-p{i}", v.astype(np.float32)) for i, v in enumerate(vectors)]
            await self.resources.embedding_service.store_batch(name, rows)
            unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            scores = unit @ unit[_ASKED]
            order = [i for i in np.argsort(-scores) if i != _ASKED][:_K]
            self.nearest[name] = [(f"{name}-p{i}", float(scores[i])) for i in order]
        return names

    async def request(self, names: list[str], builds: int, over_s: float, kills: int = 0) -> None:
        """Requests so many builds, spread over a time, and more while there is killing to do."""
        while len(self.requested) < builds or self.killed < kills:
            name = self.random.choice(names)
            try:
                build = await self.resources.build_service.request(name, BuildParameters())
            except (BuildConflict, EmptyModel, Unavailable):
                self.injected["request refused"] += 1
            else:
                self.requested[build.build_id] = name
            await asyncio.sleep(self.random.uniform(0, 2 * over_s / builds))

    async def kill(self, kills: int, every_s: float) -> None:
        """Kills something at random moments, so many times."""
        while self.killed < kills:
            await asyncio.sleep(self.random.uniform(0, 2 * every_s))
            way = self.random.choices(list(_WAYS), weights=list(_WAYS.values()))[0]
            kind, _, number = way.partition("-")
            if kind == "child":
                done = self.parts[f"worker-{number}"].kill_children()
            else:
                done = self.parts[way].kill()
            self.injected[way] += done

    async def search(self, names: list[str]) -> None:
        """Asks for neighbours for as long as it is let, and checks each answer."""
        headers = {"Authorization": f"Bearer {self.site.pool.token()}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            while True:
                name = self.random.choice(names)
                path = (
                    f"{self.site.api_url}/models/{name}/products/{name}-p{_ASKED}/neighbors?k={_K}"
                )
                try:
                    async with session.get(path) as reply:
                        self._check(name, reply.status, await reply.json(content_type=None))
                except (aiohttp.ClientError, OSError, ValueError):
                    self.answers["no answer"] += 1
                await asyncio.sleep(0.01)

    async def tell(self, every_s: float) -> None:
        """Prints how far it is, for as long as it is let."""
        while True:
            await asyncio.sleep(every_s)
            served = self.answers["200"]
            requested = len(self.requested)
            print(f"{requested} requested, {self.killed} killed, {served} answers", flush=True)

    def _check(self, name: str, status: int, answer: Any) -> None:
        self.answers[str(status)] += 1
        if status in {404, 409, 503}:
            return  # not built yet, or its process has just begun
        found = [(n["product_id"], n["score"]) for n in answer.get("neighbors", [])]
        true = self.nearest[name]
        if (
            status == 200
            and [product_id for product_id, _ in found] == [product_id for product_id, _ in true]
            and np.allclose([score for _, score in found], [score for _, score in true], atol=1e-5)
        ):
            self.served.add(answer["index"]["build_id"])
        else:
            self.wrong.append(f"{name}: {status} {answer}")

    def publications(self) -> Counter[str]:
        """Build → how often a worker said that it published it."""
        return Counter(line["build_id"] for line in self.site.logged("build published", *WORKERS))

    async def settle(self, timeout_s: float) -> dict[str, Build]:
        """Waits until every build that was requested has ended; the builds as they are then."""
        until = time.monotonic() + timeout_s
        builds: dict[str, Build] = {}
        while time.monotonic() < until:
            for build_id in self.requested.keys() - builds.keys():
                build = await self.resources.builds.get_build(build_id)
                if build.status in ENDED:
                    builds[build_id] = build
            if len(builds) == len(self.requested):
                break
            await asyncio.sleep(0.5)
        return builds


def report(storm: Storm, builds: dict[str, Build]) -> list[str]:
    """Prints what was injected and seen; what is wrong."""
    wrong = list(storm.wrong)
    ends = Counter(build.status for build in builds.values())
    lost = storm.requested.keys() - builds.keys()
    wrong += [f"build {build_id} never ended" for build_id in lost]
    published = {b.build_id for b in builds.values() if b.status == "published"}
    wrong += [f"an answer came from {b}, which was not published" for b in storm.served - published]
    wrong += [
        f"{b.build_id} {b.status}: {b.error}" for b in builds.values() if b.status != "published"
    ]
    said = storm.publications()
    wrong += [f"{b} was published {n} times" for b, n in said.items() if n > 1]
    wrong += [
        f"{b} is {builds[b].status if b in builds else 'open'}, and a worker published it"
        for b in said
        if b not in published
    ]
    print(f"injected: {dict(storm.injected)}")
    print(f"starts:   { ({name: part.starts for name, part in storm.parts.items()}) }")
    print(f"builds:   {len(storm.requested)} requested, ended as {dict(ends)}")
    print(
        f"          {sum(said.values())} publications logged (a worker killed just then logs none)"
    )
    tries = Counter(build.fence for build in builds.values())
    print(f"tries:    {dict(sorted(tries.items()))}")
    print(f"answers:  {dict(storm.answers)}, from {len(storm.served)} builds")
    for line in wrong[:20]:
        print(f"WRONG:    {line}")
    return wrong


# Short leases, so that much happens in little time. A killed worker costs a try; a storm, many.
_ENVIRON = {
    "K9_LEASE_S": "5",
    "K9_HEARTBEAT_S": "1",
    "K9_RECONCILE_S": "1",
    "K9_BUILD_ATTEMPTS_MAX": "50",
    "K9_BUILD_LOSSES_MAX": "50",
}


async def run(builds: int, models: int, kills: int, seed: int, every_s: float) -> list[str]:
    """One storm; what is wrong."""
    async with open_site(**_ENVIRON) as site:
        storm = Storm(site, seed)
        names = await storm.fill(models)
        searching = asyncio.create_task(storm.search(names))
        telling = asyncio.create_task(storm.tell(every_s=30))
        try:
            await storm.request(names, 1, over_s=0)
            await storm.settle(timeout_s=120)  # the workers are up, and have something to lose
            began = time.monotonic()
            async with asyncio.TaskGroup() as group:
                group.create_task(storm.request(names, builds, kills * every_s, kills))
                group.create_task(storm.kill(kills, every_s))
            ended = await storm.settle(timeout_s=600)
        finally:
            searching.cancel()
            telling.cancel()
            await asyncio.gather(searching, telling, return_exceptions=True)
        print(f"storm of seed {seed}: {time.monotonic() - began:.0f} s")
        return report(storm, ended)


def main() -> int:
    """Reads the arguments, and runs; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--builds", type=int, default=1000)
    parser.add_argument("--models", type=int, default=50)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every-s", type=float, default=10.0, help="mean time between two kills")
    asked = parser.parse_args()
    os.environ |= CREDENTIALS
    wrong = asyncio.run(run(asked.builds, asked.models, asked.kills, asked.seed, asked.every_s))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
