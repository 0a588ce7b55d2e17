"""What still works while parts are gone: searches, always; writes fail fast; all comes back.

    python -m tests.faults.stability [--searches 300]

An API with a proxy before each of DynamoDB, S3, Valkey and the token keys of Cognito. One by one
and all together they refuse connections, and then they hang: in the middle of the API's life, and
before it starts on the disk that it had. Each line tells what was asked and seen: searches that
answered, by what latency; what readiness said; how long writes took to fail or succeed; and how
long after the parts were back the API had noticed and could write again. Exits 1 when a search
failed, readiness was not 200, or a write took longer than 2 s and a half to fail.
"""

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Final

import httpx
import msgspec

from core import telemetry
from tests.api.serving import eventually, path_of, vector
from tests.emulators import CREDENTIALS, create_tables, running, running_valkey, settings_for
from tests.faults.proxied_api import GONE, HUNG, MODEL, PARTS, ROWS, ProxiedApi, open_proxied_api
from tests.faults.proxy import Faults

WRITE_S_MAX: Final = 2.5
"""The API gives up at 2 s; the rest is a busy machine."""
HOW: Final = {"gone": GONE, "hung": HUNG}


class Seen(msgspec.Struct):
    """What one trial came to."""

    search_s: list[float] = []
    failed: int = 0
    ready: int = 0
    told: tuple[str, ...] = ()
    """Parts that readiness called failing."""
    told_s: float = 0.0
    """How long after the searches and writes it did."""
    write_s: dict[str, float] = {}
    written: dict[str, int] = {}
    back_s: float = 0.0


async def searched(client: httpx.AsyncClient, number: int, seen: Seen) -> None:
    """One search by vector or for neighbours."""
    product_id = f"p{number % ROWS}"
    began = perf_counter()
    if number % 2:
        body = {"vector": vector(number % ROWS).tolist(), "k": 5}
        reply = await client.post(path_of(MODEL, "search"), json=body)
        right = (
            reply.status_code == 200 and reply.json()["neighbors"][0]["product_id"] == product_id
        )
    else:
        reply = await client.get(path_of(MODEL, "products", product_id, "neighbors"))
        right = reply.status_code == 200 and len(reply.json()["neighbors"]) == 10
    seen.search_s.append(perf_counter() - began)
    seen.failed += not right


async def wrote(client: httpx.AsyncClient, seen: Seen) -> None:
    """One write of each kind."""
    numbers = {"vector": vector(99).tolist()}
    batch = {"embeddings": [{"product_id": f"b{n}", **numbers} for n in range(1000)]}
    requests = {
        "embedding": ("PUT", path_of(MODEL, "embeddings", "w"), numbers),
        "batch": ("POST", path_of(MODEL, "embeddings:batch"), batch),
        "report": ("POST", "/reports", {"title": "Test Report"}),
    }
    for name, (method, path, body) in requests.items():
        began = perf_counter()
        reply = await client.request(method, path, json=body)
        seen.write_s[name] = perf_counter() - began
        seen.written[name] = reply.status_code


async def trial(client: httpx.AsyncClient, searches: int) -> Seen:
    """What works just now."""
    seen = Seen()
    for number in range(searches):
        await searched(client, number, seen)
    await wrote(client, seen)
    for number in range(searches):
        await searched(client, number, seen)
    return seen


async def missed(client: httpx.AsyncClient, parts: tuple[str, ...], seen: Seen) -> None:
    """Waits until readiness tells of these parts that they are missing, and notes what it says."""
    began = perf_counter()
    async with asyncio.timeout(90):
        while not set(parts) <= set(seen.told):
            ready = await client.get("/health/ready")
            seen.ready = max(seen.ready, ready.status_code)
            states = ready.json()["dependencies"]
            seen.told = tuple(name for name, part in states.items() if part["state"] == "failing")
            await asyncio.sleep(0.05)
    seen.told_s = perf_counter() - began


async def recovered(client: httpx.AsyncClient) -> float:
    """Seconds until a write succeeds and readiness calls nothing failing."""
    began = perf_counter()
    async with asyncio.timeout(90):
        while True:
            path = path_of(MODEL, "embeddings", "back")
            reply = await client.put(path, json={"vector": vector(98).tolist()})
            parts = (await client.get("/health/ready")).json()["dependencies"]
            failing = [name for name, part in parts.items() if part["state"] == "failing"]
            if reply.status_code in {200, 201} and not failing:
                return perf_counter() - began
            await asyncio.sleep(0.05)


def told(name: str, seen: Seen) -> bool:
    """Prints a line; whether all was as it must be."""
    ordered = sorted(seen.search_s)
    p50, p99 = (1000 * ordered[int(len(ordered) * share)] for share in (0.5, 0.99))
    writes = ", ".join(
        f"{kind} {seen.written[kind]} in {seconds:.2f} s" for kind, seconds in seen.write_s.items()
    )
    failing = ", ".join(seen.told) or "nothing"
    print(
        f"{name:<28} {len(ordered) - seen.failed} of {len(ordered)} searches, p50 {p50:.1f} ms, "
        f"p99 {p99:.1f} ms; ready {seen.ready}, failing after {seen.told_s:.0f} s: {failing}; "
        f"{writes}; "
        f"back after {seen.back_s:.1f} s",
        flush=True,
    )
    slow = [s for kind, s in seen.write_s.items() if seen.written[kind] >= 500 and s > WRITE_S_MAX]
    return not seen.failed and seen.ready == 200 and not slow


async def run(site: ProxiedApi, searches: int) -> bool:
    """Every trial; whether all went well."""
    well = True
    sets = [*((part,) for part in PARTS), PARTS]
    async with site.api() as client:
        await eventually(client, MODEL)
        for parts in sets:
            for how, faults in HOW.items():
                site.set(faults, *parts)
                seen = await trial(client, searches)
                await missed(client, parts, seen)
                site.set(Faults(), *parts)
                seen.back_s = await recovered(client)
                well &= told(f"{'all' if parts is PARTS else parts[0]} {how}", seen)
    for how, faults in HOW.items():
        site.set(faults, *PARTS)
        began = perf_counter()
        async with site.api() as client:
            await eventually(client, MODEL, seconds=60)
            start_s = perf_counter() - began
            seen = await trial(client, searches)
            await missed(client, PARTS, seen)
            site.set(Faults(), *PARTS)
            seen.back_s = await recovered(client)
            well &= told(f"all {how} at a start ({start_s:.1f} s)", seen)
    injected = {part: dict(proxy.injected) for part, proxy in site.proxies.items()}
    print(f"injected: {injected}")
    return well


async def main(searches: int) -> bool:
    """On an emulator and a Valkey of its own; whether all went well."""
    telemetry.configure_logging(level="error", json=False)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="k9-stability-")))
        settings = await create_tables(settings_for(stack.enter_context(running("ministack"))))
        redis_url = stack.enter_context(running_valkey())
        settings = msgspec.structs.replace(settings, redis_url=redis_url)
        async with open_proxied_api(settings, directory) as site:
            return await run(site, searches)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--searches", type=int, default=300, help="before and after the writes")
    os.environ |= CREDENTIALS
    sys.exit(not asyncio.run(main(parser.parse_args().searches)))
