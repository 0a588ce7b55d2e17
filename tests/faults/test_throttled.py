"""DynamoDB turns calls away, and takes batches in part: what was promised is there all the same."""

from pathlib import Path
from typing import Any

import httpx
import msgspec
from prometheus_client import REGISTRY

from tests.api.serving import assert_problem, path_of, vector
from tests.emulators import create_tables, settings_for
from tests.faults.proxied_api import MODEL, ProxiedApi
from tests.faults.proxy import Faults
from tests.faults.throttled import build_index, import_rows
from tests.faults.throttled import site as throttled_site

ROWS = 1000
THIRDS = Faults(throttle_rate=0.33, unprocessed_rate=0.33)
ALWAYS_IN_PART = Faults(throttle_rate=0.33, unprocessed_rate=1.0)


async def test_an_import_and_a_build_come_through(ministack: str, tmp_path: Path) -> None:
    """The short form of `python -m tests.faults.throttled`."""
    straight = await create_tables(settings_for(ministack))
    async with throttled_site(straight, tmp_path, seed=5) as at:
        assert await import_rows(at, ROWS, THIRDS, seed=5) == []
        assert await build_index(at, ROWS, THIRDS) == []


def batch(prefix: str) -> tuple[dict[str, list[float]], dict[str, bytes]]:
    """Rows to send, and the bytes that are to be stored of each."""
    vectors = {f"{prefix}{number}": vector(number) for number in range(ROWS)}
    return {one: v.tolist() for one, v in vectors.items()}, {
        one: v.astype("<f4").tobytes() for one, v in vectors.items()
    }


async def post(client: httpx.AsyncClient, rows: dict[str, list[float]]) -> tuple[int, set[str]]:
    """Stores a batch; the status, and the ids that were not taken."""
    entries = [{"product_id": one, "vector": numbers} for one, numbers in rows.items()]
    reply = await client.post(path_of(MODEL, "embeddings:batch"), json={"embeddings": entries})
    if reply.status_code == 200:
        assert reply.json() == {"stored": len(rows)}
        return 200, set()
    if reply.status_code == 503 and reply.json()["type"] == "unavailable":
        return 503, set(rows)  # the model version could not be read
    body: Any = assert_problem(reply, 503, "partly-stored")
    left = body["unprocessed"]
    assert left
    assert len(set(left)) == len(left) == len(rows) - body["stored"]
    assert reply.headers["retry-after"]
    return 503, set(left)


async def read(site: ProxiedApi, rows: dict[str, list[float]]) -> dict[str, bytes | None]:
    """What the table has of these rows, not read through the proxy."""
    found = await site.straight.embeddings.read_rows(MODEL, list(rows))
    return {row.product_id: row.vector for row in found}


def counted(name: str) -> float:
    """What a counter without labels shows."""
    return REGISTRY.get_sample_value(name) or 0.0


def counted_throttles() -> float:
    """How many requests of all tables the metrics call throttled."""
    return sum(
        sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == "k9_aws_attempts_total" and sample.labels["outcome"] == "throttled"
    )


async def test_a_batch_is_stored_in_the_end(site: ProxiedApi) -> None:
    """With a third of all calls turned away, each answer is true, and the batch gets there."""
    rows, wanted = batch("thirds-")
    async with site.api() as client:
        site.set(THIRDS, "dynamodb")
        for _ in range(10):
            status, left = await post(client, rows)
            there = await read(site, rows)
            assert there.keys() >= wanted.keys() - left
            if status == 200:
                break
        assert site.proxies["dynamodb"].injected["items unprocessed"] > 0
    assert await read(site, rows) == wanted


async def test_a_batch_says_what_was_not_taken(site: ProxiedApi) -> None:
    """All ids but the `unprocessed` ones are stored; sending all of it again completes."""
    rows, wanted = batch("parts-")
    ingest = msgspec.structs.replace(site.settings.ingest, batch_deadline_s=2.0)
    site.settings = msgspec.structs.replace(site.settings, ingest=ingest)
    unprocessed, throttled = counted("k9_embeddings_unprocessed_total"), counted_throttles()
    async with site.api() as client:
        site.set(ALWAYS_IN_PART, "dynamodb")  # no batch is ever taken to its last row
        status, left = 503, set(rows)
        while left == rows.keys():  # the model version could not be read
            status, left = await post(client, rows)
            assert status == 503
        site.set(Faults(), "dynamodb")
        assert counted("k9_embeddings_unprocessed_total") == unprocessed + len(left)
        assert counted_throttles() > throttled
        there = await read(site, rows)
        assert wanted.keys() > there.keys() >= wanted.keys() - left
        assert all(vector == wanted[one] for one, vector in there.items())
        for _ in range(5):
            status, _ = await post(client, rows)
            if status == 200:
                break
        assert status == 200
    assert await read(site, rows) == wanted
