"""One caller against the others: what a bystander notices while another caller attacks.

    python -m tests.faults.callers [--file CATALOGUE.parquet] [--rows 100000] [--data DIR]
        [--seconds 10] [--rate 100] [--only NAME]...

Starts a `k9 dev` of its own on free ports, imports the catalogue, builds its index, and runs each
attack of `tests.faults.attacks` in a process of its own. The API has one core, and everything else
another. The bystander is another caller: it sends small searches at a fixed rate whatever becomes
of the earlier ones, and a reply's time counts from when its request was due. With `--data` the
stack is made in that directory and stays there, so that the next run has nothing to import.

Prints, for quiet times and each attack, the bystander's share of answered searches, their median
and 99th percentile, and the API's resident memory before, at most during, and 3 s after the attack.
Exits 1 where less than 99 % was answered, or the 99th percentile was over 3 times the quiet one.
"""

import argparse
import asyncio
import dataclasses
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import numpy as np
import pyarrow.parquet as pq

from core.settings import Http
from deploy.local.files import read_stack
from tests.e2e.dev import Dev, run_in, running_dev
from tests.faults.attacks import ATTACKS, HUNG, Target

MODEL: Final = "catalogue"
STREAMS: Final = "event streams"
API_CORE, OTHER_CORE = 0, 1
SHARE_MIN: Final = 0.99
P99_RATIO_MAX: Final = 3.0
_GIVE_UP_S: Final = 10.0
_MIB: Final = 2**20
_ROOT: Final = Path(__file__).parents[2]
_PACKED: Final = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}


@dataclass(frozen=True, slots=True)
class Stack:
    """What is attacked, and who is there beside the attacker."""

    target: Target
    bystander: str
    """Another caller's token."""
    second_operator: str
    """The token of an operator who is not the attacker."""
    api_pid: int
    worker_pids: tuple[int, ...]
    hang_keys: Callable[[bool], None]
    """Lets the key server hang, or go on."""


class Seen(msgspec.Struct, frozen=True):
    """What the bystander noticed."""

    share: float
    """Of its searches that were answered 200."""
    p50_ms: float
    p99_ms: float
    """Of all, with the time until it gave up for those that were not answered."""
    outcomes: dict[str, int]
    """How many by status, or by what went wrong."""


async def watch(stack: Stack, seconds: float, rate: float) -> Seen:
    """Sends the bystander's searches at a fixed rate."""
    generator = np.random.default_rng(11)
    rows = generator.standard_normal((200, stack.target.dimension)).astype("<f4")
    bodies = [msgspec.msgpack.encode({"vector": row.tobytes(), "k": 10}) for row in rows]
    headers = {"Authorization": f"Bearer {stack.bystander}", **_PACKED}
    url = f"http://127.0.0.1:{stack.target.port}/models/{stack.target.model}/search"
    loop = asyncio.get_running_loop()
    took: list[float] = []
    outcomes: Counter[str] = Counter()

    async def search(session: aiohttp.ClientSession, due: float, body: bytes) -> None:
        try:
            async with session.post(url, data=body) as reply:
                read = await reply.read()
            outcome = str(reply.status)
            if reply.status != HTTPStatus.OK:
                outcome += f" {msgspec.json.decode(read)['detail']}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            outcome = type(error).__name__
        outcomes[outcome] += 1
        took.append(loop.time() - due if outcome == "200" else _GIVE_UP_S)

    timeout = aiohttp.ClientTimeout(total=_GIVE_UP_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session,
        asyncio.TaskGroup() as group,
    ):
        began = loop.time()
        for number in range(round(seconds * rate)):
            due = began + number / rate
            await asyncio.sleep(max(0.0, due - loop.time()))
            group.create_task(search(session, due, bodies[number % len(bodies)]))
    p50, p99 = (1000 * float(np.quantile(took, share)) for share in (0.5, 0.99))
    return Seen(outcomes["200"] / len(took), p50, p99, dict(outcomes))


@asynccontextmanager
async def attacked(stack: Stack, name: str) -> AsyncIterator[None]:
    """The attack, in a process of its own, until the end of the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.attacks", name),
        cwd=_ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(stack.target))
    process.stdin.close()
    try:
        stack.hang_keys(name in HUNG)
        assert process.stdout is not None
        await process.stdout.readline()  # it begins
        await asyncio.sleep(0.5)  # with all that it does
        yield
        if process.returncode is not None:
            raise RuntimeError(f"the attack {name} ended by itself: {process.returncode}")
    finally:
        stack.hang_keys(False)
        if process.returncode is None:
            process.kill()
        await process.wait()


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024


async def most_memory(pid: int, found: list[int]) -> None:
    """Notes the memory again and again, until cancelled."""
    while True:
        found[0] = max(found[0], memory(pid))
        await asyncio.sleep(0.1)


@asynccontextmanager
async def open_build(stack: Stack) -> AsyncIterator[Stack]:
    """The stack with a build that stays open: its workers stand still meanwhile."""
    url = f"http://127.0.0.1:{stack.target.port}"
    headers = {"Authorization": f"Bearer {stack.target.operator}"}
    for pid in stack.worker_pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        async with aiohttp.ClientSession(url, headers=headers) as session:
            builds = f"/models/{stack.target.model}/builds"
            async with session.post(builds, json={"force": True}) as reply:
                build_id = (await reply.json())["build_id"]
            try:
                target = msgspec.structs.replace(stack.target, build_id=build_id)
                yield dataclasses.replace(stack, target=target)
            finally:
                async with session.delete(f"/builds/{build_id}") as reply:
                    reply.raise_for_status()
    finally:
        for pid in stack.worker_pids:
            os.kill(pid, signal.SIGCONT)


async def stream_status(stack: Stack) -> int:
    """The answer to another operator who opens a stream of events."""
    url = f"http://127.0.0.1:{stack.target.port}/builds/{stack.target.build_id}/events"
    headers = {"Authorization": f"Bearer {stack.second_operator}"}
    timeout = aiohttp.ClientTimeout(total=_GIVE_UP_S)
    async with (
        aiohttp.ClientSession(headers=headers, timeout=timeout) as session,
        session.get(url) as reply,
    ):
        return reply.status


async def trial(stack: Stack, name: str, seconds: float, rate: float, quiet: Seen) -> bool:
    """One attack; prints its line. Whether the bystander was served as well as it must be."""
    before = memory(stack.api_pid)
    most = [before]
    noting = asyncio.create_task(most_memory(stack.api_pid, most))
    async with attacked(stack, name):
        seen = await watch(stack, seconds, rate)
        stream = await stream_status(stack) if name == STREAMS else 200
    noting.cancel()
    await asyncio.sleep(3)
    after = memory(stack.api_pid)
    ratio = seen.p99_ms / quiet.p99_ms
    held = seen.share >= SHARE_MIN and ratio <= P99_RATIO_MAX and stream == 200
    sizes = "  ".join(f"{size / _MIB:6.0f}" for size in (before, most[0], after))
    failed = {name: count for name, count in seen.outcomes.items() if name != "200"}
    said = f" {failed}" if failed else ""
    said += "" if stream == 200 else f", another operator's stream {stream}"
    print(
        f"{name:<30} {seen.share:7.1%} {seen.p50_ms:8.1f} {seen.p99_ms:8.1f} {ratio:6.2f}   {sizes}"
        f"   {'' if held else 'NOT HELD'}{said}",
        flush=True,
    )
    return held


async def run(stack: Stack, names: list[str], seconds: float, rate: float) -> bool:
    """Every attack, with a quiet time before each; whether the bystander was well throughout."""
    titles = f"{'answered':>7} {'p50 ms':>7} {'p99 ms':>8} {'x quiet':>7}"
    print(f"{'':<30} {titles}   MiB before, most, after")
    await watch(stack, 2, rate)  # connections are made, the index is in memory
    held = True
    for name in names:
        quiet = await watch(stack, seconds, rate)
        print(f"{'quiet':<30} {quiet.share:7.1%} {quiet.p50_ms:8.1f} {quiet.p99_ms:8.1f}")
        opened = open_build(stack) if name == STREAMS else nullcontext(stack)
        async with opened as attacked_stack:
            held &= await trial(attacked_stack, name, seconds, rate, quiet)
    return held


# --- the stack ------------------------------------------------------------------------------------


async def _command(dev: Dev, *words: str) -> str:
    status, out, error = await run_in(dev.directory, *words)
    if status != 0:
        raise SystemExit(f"k9 {words[0]}: {error.strip()}")
    return out.strip()


async def _loaded(url: str, token: str) -> Any:
    """The model version with its current build, once the API has that in memory."""
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(headers=headers) as session, asyncio.timeout(120):
        while True:
            async with session.get(f"{url}/models/{MODEL}") as reply:
                found = await reply.json()
                if reply.status == 404 or (reply.status == 200 and not found["current_build"]):
                    return None
                if reply.status == 200 and found["loaded"]:
                    return found
            await asyncio.sleep(0.2)


@asynccontextmanager
async def open_stack(directory: Path, file: Path, rows: int) -> AsyncIterator[Stack]:
    """`k9 dev` in a directory, with the catalogue imported and its index in use."""
    async with running_dev(directory, "--empty") as dev:
        await dev.until("ready in")
        running = read_stack(directory / ".k9")
        if running is None:
            raise SystemExit("k9 dev has not started")
        url = running.environ["K9_URL"]
        operator = await _command(dev, "token", "--user", "oscar", "--operator")
        model = await _loaded(url, operator)
        if model is None:
            part = await asyncio.to_thread(_part_of, file, rows, directory)
            print(f"importing {rows:,} rows and building", flush=True)
            await _command(dev, "import", str(part), "--model", MODEL)
            await _command(dev, "build", MODEL)
            model = await _loaded(url, operator)
        parts = dev.parts()
        api, aws = parts["api"].pid, parts["aws"].pid
        _pin(api, API_CORE)
        yield Stack(
            target=Target(
                port=int(url.rpartition(":")[2]),
                token=await _command(dev, "token", "--user", "mallory"),
                operator=operator,
                model=MODEL,
                dimension=model["dimension"],
                build_id="",
                connections_max=Http().connections_max,
            ),
            bystander=await _command(dev, "token", "--user", "bob"),
            second_operator=await _command(dev, "token", "--user", "olga", "--operator"),
            api_pid=api,
            worker_pids=(parts["worker"].pid,),
            hang_keys=lambda hung: os.kill(aws, signal.SIGSTOP if hung else signal.SIGCONT),
        )


def _pin(pid: int, core: int) -> None:
    """Gives a process, with all its threads, one core."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


def _part_of(file: Path, rows: int, directory: Path) -> Path:
    """The catalogue's first rows, as a file to import."""
    part = directory / "catalogue.parquet"
    pq.write_table(pq.read_table(file).slice(0, rows), part)
    return part


async def main(arguments: argparse.Namespace) -> bool:
    """Runs; whether the bystander was well throughout."""
    names = arguments.only or list(ATTACKS)
    with tempfile.TemporaryDirectory(prefix="k9-callers-") as temporary:
        directory = arguments.data or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        async with open_stack(directory, arguments.file, arguments.rows) as stack:
            return await run(stack, names, arguments.seconds, arguments.rate)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--file", type=Path, required=True, help="product_id, vector")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--data", type=Path, help="where the stack is, or is made and stays")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=100.0, help="searches a second")
    parser.add_argument("--only", action="append", choices=list(ATTACKS))
    asked = parser.parse_args()
    if not asked.file.exists():
        sys.exit(f"{asked.file} is not there")
    if (os.cpu_count() or 1) < 2:
        sys.exit("this takes two processors: the API has one of its own")
    os.sched_setaffinity(0, {OTHER_CORE})
    sys.exit(not asyncio.run(main(asked)))
