"""All that can be made again is gone: one command brings back the same answers and the same files.

    python -m tests.faults.wiped [--rows 20000] [--dimension 128] [--questions 100]

Stores rows, builds their index (a graph, `deterministic`), and puts searches by vector, by product
and neighbours. Then every object in the bucket is deleted, the caches of API and workers are, and
Valkey is emptied: the API goes on from memory, until it is killed and starts again. `k9 rebuild` is
run as a process, with an operator's token and no other right, and the same searches are put. Prints
what was done and seen; exits 1 where an answer, a score, or a file's SHA-256 is another one.
"""

import os
import shutil
import signal
import sys
import time

import httpx

from core.models import Build
from tests.api.serving import path_of
from tests.api.test_build_commands import k9
from tests.faults.machine import Machine, main
from tests.faults.questions import Questions, answering, differing, troubled

MODEL = "wiped"


async def wipe(machine: Machine) -> None:
    """Deletes every object, every cache and all of Valkey."""
    objects = machine.resources.objects
    keys = await objects.list_keys("")
    await objects.delete(keys)
    cached = [path for path in machine.caches.rglob("*") if path.is_file()]
    for path in machine.caches.iterdir():
        shutil.rmtree(path)
    await machine.resources.queue.redis.flushall()
    print(f"deleted: {len(keys)} objects, {len(cached)} files in caches, all of Valkey")


async def in_between(client: httpx.AsyncClient) -> list[str]:
    """What the API answers with nothing to answer from; what is wrong with it."""
    ready = await troubled(client, MODEL)
    search = await client.get(path_of(MODEL, "products", "p000001", "neighbors"))
    print(f"killed, it starts again: a search is {search.status_code}: {search.json()['detail']}")
    print(f"  readiness is {ready.status_code}, and its troubles say the same")
    told = search.status_code == 503 and "k9 rebuild" in search.text
    return [] if told else ["the API did not tell what is missing"]


def compared(before: Build, after: Build) -> list[str]:
    """The files whose SHA-256 is another one."""
    then, now = ((build.manifest or {})["files"] for build in (before, after))
    names = sorted(then.keys() | now.keys())
    others = [name for name in names if then.get(name) != now.get(name)]
    print(f"files: {len(names) - len(others)} of {len(names)} have the same SHA-256")
    return [f"{name} has another SHA-256" for name in others]


async def run(machine: Machine, questions: Questions) -> list[str]:
    """All of it; what is wrong."""
    site = machine.site
    await questions.store(machine.resources)
    before = await questions.build(machine.resources)
    async with machine.client() as client:
        await answering(client, before.build_id)
        answers = await questions.ask(client)
    family = (before.manifest or {})["index"]["family"]
    print(f"built: {questions.rows} rows of {questions.dimension} as {family}")
    await wipe(machine)
    async with machine.client() as client:
        others = differing(answers, await questions.ask(client))
    print(
        f"the API goes on from memory: {len(answers) - others} of {len(answers)} answers the same"
    )
    wrong = [f"{others} other answers from memory"] if others else []
    machine.signal_api(signal.SIGKILL)
    async with machine.client() as client:
        wrong += await in_between(client)
        began = time.monotonic()
        token = site.pool.token("operators")
        environ = {"K9_URL": site.api_url, "K9_TOKEN": token, "K9_STACK": "off"}
        status, out, error = await k9(os.environ | environ, "rebuild")
        print(f"\n$ k9 rebuild\n{out}{error}(status {status}, {time.monotonic() - began:.1f} s)\n")
        again = await questions.ask(client)
    others = differing(answers, again)
    print(f"answers: {len(again) - others} of {len(again)} are the same, to the last digit")
    model = await machine.resources.models.get_model(MODEL)
    after = await machine.resources.builds.get_build(model.current_build_id or "")
    wrong += compared(before, after)
    wrong += [f"{others} answers are other ones"] if others else []
    wrong += [f"k9 rebuild ended with {status}"] if status else []
    return wrong + ([] if after.build_id != before.build_id else ["nothing was built"])


if __name__ == "__main__":
    sys.exit(main(__doc__, run, Questions(MODEL, rows=20_000, dimension=128, each=100)))
