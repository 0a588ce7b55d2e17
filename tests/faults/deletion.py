"""Whether the deletion of a user ever destroys what was acknowledged after it.

    python -m tests.faults.deletion [--users 100] [--at-once 20] [--kills 10]

Starts the emulator, Valkey, three workers and an API of its own. Each user makes a profile and
reports, deletes itself, makes the profile anew as soon as it is gone, and writes reports, each
under an idempotency key. Workers are killed meanwhile. Then every report that was answered 201 must
stay, and each request sent again must be answered as before: the one that deleted the user, too.
Prints what was seen; exits 1 when anything was lost, or happened twice.
"""

import argparse
import asyncio
import os
import random
import sys
from collections import Counter
from typing import Any
from uuid import uuid4

import httpx

from tests.emulators import CREDENTIALS
from tests.faults.site import Site, open_site

WORKERS = ("worker-0", "worker-1", "worker-2")
LEASE_S = 5.0
REPORTS = 8
_WATCHED_S = 8.0
"""How long reports are read again and again: longer than a worker's round and its last look."""
_KILLED_EVERY_S = 4.0


class Trial:
    """One user's two lives, over HTTP."""

    def __init__(self, client: httpx.AsyncClient, seen: Counter[str]) -> None:
        self._client = client
        self._seen = seen
        self.wrong: list[str] = []

    async def run(self, watched_s: float) -> None:
        """Makes, deletes, makes anew, and watches."""
        await self._create("first")
        await self._write_reports(uuid4().hex)
        delete_key, report_key = uuid4().hex, uuid4().hex
        self._check("DELETE", await self._delete(delete_key), httpx.codes.ACCEPTED)
        await self._until_gone()
        await self._create("second")
        made = await self._write_reports(report_key)
        await self._watch(made, watched_s)
        await self._send_again(made, report_key, delete_key)

    async def _create(self, name: str) -> None:
        reply = await self._client.post("/users", json={"name": name})
        self._check("POST /users", reply, httpx.codes.CREATED)

    async def _delete(self, key: str) -> httpx.Response:
        return await self._client.delete("/users/me", headers={"idempotency-key": key})

    async def _until_gone(self) -> None:
        async with asyncio.timeout(120):
            while True:
                reply = await self._client.get("/users/me")
                if reply.status_code == httpx.codes.NOT_FOUND:
                    self._seen["profiles removed"] += 1
                    return
                await asyncio.sleep(0.05)

    async def _write_reports(self, key: str) -> list[str]:
        """Writes reports, each under a key made of this one; their ids."""
        replies = await asyncio.gather(*(self._report(key, number) for number in range(REPORTS)))
        for reply in replies:
            self._check("POST /reports", reply, httpx.codes.CREATED)
            self._seen["reports acknowledged"] += reply.status_code == httpx.codes.CREATED
        return [str(reply.json().get("id")) for reply in replies]

    async def _report(self, key: str, number: int) -> httpx.Response:
        """Writes a report; one that is answered 503 is sent again, under the same key."""
        async with asyncio.timeout(120):
            while True:
                reply = await self._client.post(
                    "/reports",
                    json={"title": f"report {number}"},
                    headers={"idempotency-key": f"{key}-{number}"},
                )
                if reply.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    return reply
                self._seen["503, sent again"] += 1
                await asyncio.sleep(float(reply.headers["retry-after"]))

    async def _watch(self, made: list[str], watched_s: float) -> None:
        """Reads the reports for a while; one that is gone is lost."""
        loop = asyncio.get_running_loop()
        until = loop.time() + watched_s
        lost: set[str] = set()
        while loop.time() < until:
            for report_id in made:
                reply = await self._client.get(f"/reports/{report_id}")
                if reply.status_code == httpx.codes.NOT_FOUND:
                    lost.add(report_id)
            await asyncio.sleep(0.5)
        self._seen["reports lost"] += len(lost)
        self.wrong += [f"report {report_id} was acknowledged, and is 404" for report_id in lost]

    async def _send_again(self, made: list[str], report_key: str, delete_key: str) -> None:
        """Sends each request again: it is answered as before, and nothing happens."""
        again = await asyncio.gather(
            *(self._report(report_key, number) for number in range(REPORTS))
        )
        ids = [reply.json().get("id") for reply in again]
        self._seen["keys forgotten"] += sum(a != b for a, b in zip(ids, made, strict=True))
        if ids != made:
            self.wrong.append(f"requests sent again made {ids}, not {made}")
        self._check("DELETE again", await self._delete(delete_key), httpx.codes.ACCEPTED)
        profile: dict[str, Any] = (await self._client.get("/users/me")).json()
        if profile.get("name") != "second" or profile.get("deleting_at") is not None:
            self._seen["profiles deleted twice"] += 1
            self.wrong.append(f"the profile made anew is {profile}")

    def _check(self, what: str, reply: httpx.Response, status: int) -> None:
        if reply.status_code != status:
            self.wrong.append(f"{what}: {reply.status_code} {reply.text}")


async def _until_live(url: str) -> None:
    """Waits until the API answers."""
    async with asyncio.timeout(300), httpx.AsyncClient(base_url=url) as client:
        while True:
            try:
                await client.get("/health/live")
            except httpx.TransportError:
                await asyncio.sleep(0.1)
            else:
                return


async def _kill(site: Site, kills: int, seen: Counter[str]) -> None:
    """Kills a worker at a time, so many times."""
    for _ in range(kills):
        await asyncio.sleep(random.uniform(0, 2 * _KILLED_EVERY_S))
        seen["workers killed"] += site.parts[random.choice(WORKERS)].kill()


async def run(
    users: int, *, at_once: int, kills: int, watched_s: float = _WATCHED_S, **environ: str
) -> list[str]:
    """The whole of it; what is wrong."""
    seen: Counter[str] = Counter()
    wrong: list[str] = []
    gate = asyncio.Semaphore(at_once)
    variables = {"K9_LEASE_S": f"{LEASE_S:g}", "K9_WORKER_METRICS_PORT": "0"} | environ
    async with open_site(workers=WORKERS, **variables) as site:
        await _until_live(site.api_url)

        async def one() -> None:
            headers = {"authorization": f"Bearer {site.pool.token(sub=uuid4().hex)}"}
            client = httpx.AsyncClient(base_url=site.api_url, headers=headers, timeout=60)
            async with gate, client:
                trial = Trial(client, seen)
                await trial.run(watched_s)
                wrong.extend(trial.wrong)

        killing = asyncio.create_task(_kill(site, kills, seen))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(users):
                    group.create_task(one())
        finally:
            killing.cancel()
            await asyncio.gather(killing, return_exceptions=True)
        for event in ("user deleted", "deletion lost to another worker", "deletion put off"):
            seen[f"workers: {event}"] = len(site.logged(event, *WORKERS))
    print(f"{users} users, {at_once} at once, {len(WORKERS)} workers")
    for name, count in sorted(seen.items()):
        print(f"  {name}: {count}", flush=True)
    return wrong


def main() -> int:
    """Reads the arguments and runs; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--at-once", type=int, default=20)
    parser.add_argument("--kills", type=int, default=10)
    arguments = parser.parse_args()
    os.environ |= CREDENTIALS
    wrong = asyncio.run(run(arguments.users, at_once=arguments.at_once, kills=arguments.kills))
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
