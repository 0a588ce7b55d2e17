"""Embeddings, builds, versions and model versions, used through both releases."""

import gzip
import json
from typing import Any, Final
from uuid import uuid4

import httpx
import numpy as np

from core.models import Build
from tests.upgrade.catalogue import MODEL, Vectors, queries, recall, search, store
from tests.upgrade.environment import Client, Environment, code, until
from tests.upgrade.ledger import Ledger, listed
from tests.upgrade.records import OTHER
from tests.worker.processes import until as build_until

FRESH_S: Final = 2.0
"""How soon a write that one process acknowledged is found through another one."""
FOLLOW_S: Final = 30.0
_GONE_S: Final = 120.0


async def freshness(environment: Environment, ledger: Ledger, writer: str) -> str:
    """What one release stores and deletes is found, and not found any more, through the other."""
    reader = OTHER[writer]
    slowest = 0.0
    for number in range(5):
        name = f"fresh-{writer}-{number}"
        vector = _apart(ledger, number, writer)
        path = f"/models/{MODEL}/embeddings/{name}"
        reply = await environment.client(writer).put(path, json={"vector": vector.tolist()})
        code(reply, httpx.codes.OK, httpx.codes.CREATED)
        ledger.put(MODEL, name, vector)
        slowest = max(slowest, await _until_first(environment.client(reader), vector, name))
        token = {"min_watermark": reply.headers["x-watermark"]}
        body = {"vector": vector.tolist(), "k": 1, **token}
        found = await environment.client(reader).post(f"/models/{MODEL}/search", json=body)
        assert code(found, httpx.codes.OK).json()["neighbors"][0]["product_id"] == name
        reply = await environment.client(writer).delete(path)
        code(reply, httpx.codes.NO_CONTENT)
        ledger.delete(MODEL, name)
        slowest = max(slowest, await _until_first(environment.client(reader), vector, None, name))
    names = [f"fresh-batch-{writer}-{n}" for n in range(50)]
    rows = {name: _apart(ledger, 100 + n, writer) for n, name in enumerate(names)}
    await store(environment.client(writer), MODEL, rows)
    for name, vector in rows.items():
        ledger.put(MODEL, name, vector)
    for name in (names[0], names[-1]):
        slowest = max(slowest, await _until_first(environment.client(reader), rows[name], name))
    assert slowest < FRESH_S, f"{slowest:.2f} s, and the bound is {FRESH_S} s"
    return f"5 puts, 5 deletions, 1 batch: found after {slowest * 1000:.0f} ms at the latest"


def _apart(ledger: Ledger, number: int, writer: str) -> Vectors:
    dimension = len(next(iter(ledger.rows[MODEL].values())))
    seed = number + (1000 if writer == "old" else 2000)
    return np.random.default_rng(seed).normal(size=dimension).astype(np.float32)


async def _until_first(client: Client, vector: Vectors, name: str | None, but: str = "") -> float:
    """Seconds until a search finds the row first, or without a name another one than `but`."""
    body = {"vector": vector.tolist(), "k": 1}

    async def found() -> bool:
        reply = code(await client.post(f"/models/{MODEL}/search", json=body), httpx.codes.OK)
        first = reply.json()["neighbors"][0]["product_id"]
        return bool(first == name if name is not None else first != but)

    return await until(found, FOLLOW_S)


async def build(environment: Environment, requester: str, worker: str, model: str = MODEL) -> Build:
    """A build that one release's API accepted, done while only one release's worker runs."""
    await environment.start(f"{worker}-worker")
    await environment.stop(f"{OTHER[worker]}-worker")
    key = {"idempotency-key": uuid4().hex}
    body = {"matrix_k": 10, "force": True}
    reply = await environment.client(requester).post(
        f"/models/{model}/builds", json=body, headers=key
    )
    build_id = code(reply, httpx.codes.ACCEPTED).json()["build_id"]
    ended = await environment.build(build_id)
    assert ended.status == "published", (ended.status, ended.error)

    async def logged() -> bool:
        lines = environment.logged(f"{worker}-worker", "build published")
        return build_id in {line["build_id"] for line in lines}

    await until(logged, FOLLOW_S)
    return ended


async def follows(environment: Environment, release: str, build_id: str) -> str:
    """A release's API answers from a build."""

    async def followed() -> bool:
        return await answering(environment, release) == build_id

    took_s = await until(followed, FOLLOW_S)
    return f"{release} answers from it after {took_s:.1f} s"


async def answering(environment: Environment, release: str) -> str | None:
    """The build that a release answers from; None while it has none in memory."""
    body = {"vector": queries()[0].tolist(), "k": 1}
    reply = await environment.client(release).post(f"/models/{MODEL}/search", json=body)
    code(reply, httpx.codes.OK, httpx.codes.CONFLICT, httpx.codes.SERVICE_UNAVAILABLE)
    if reply.is_error:
        return None
    return str(reply.json()["index"]["build_id"])


async def same_answers(environment: Environment) -> str:
    """Both releases answer alike from one version."""
    asked = queries()
    found = [await search(environment.client(name), MODEL, asked) for name in ("old", "new")]
    assert found[0] == found[1], "the answers differ"
    return f"{len(asked)} searches, same products in the same order, from {found[0][1][:12]}"


async def recall_of(
    environment: Environment, ledger: Ledger, release: str, least: float = 0.0
) -> float:
    """The recall through a release's API.

    Raises:
        AssertionError: it is below the least.
    """
    share, build_id = await recall(environment.client(release), MODEL, ledger.rows[MODEL])
    assert share >= least, f"{share:.4f} from {build_id}, and it was {least:.4f}"
    return share


async def old_keeps_answering(environment: Environment, ledger: Ledger, before: str) -> str:
    """After a new worker's build the old API answers from the build before it, with fresh rows."""
    build_id = await answering(environment, "old")
    assert build_id == before, (build_id, before)
    share = await recall_of(environment, ledger, "old", 0.9)
    seen = await freshness(environment, ledger, "new")
    return f"recall {share:.4f} from the build before it; {seen}"


def _rows_of_new() -> dict[str, Vectors]:
    return {f"p{n}": np.random.default_rng(n).normal(size=8).astype(np.float32) for n in range(50)}


async def old_restarts(environment: Environment, ledger: Ledger, before: str) -> str:
    """SIGKILL to the old API, which cannot find the current index: its disk has the one before."""
    await environment.kill_api("old")
    took = await follows(environment, "old", before)
    share = await recall_of(environment, ledger, "old", 0.9)
    return f"{took}; recall {share:.4f}"


async def model_of_new(environment: Environment, name: str) -> str:
    """A model version that the new release creates is built by it, whoever else runs."""
    await environment.start("old-worker", "new-worker")
    new = environment.client("new")
    await store(new, name, _rows_of_new())
    for _ in range(4):
        reply = await new.post(f"/models/{name}/builds", json={"matrix_k": 5, "force": True})
        ended = await environment.build(code(reply, httpx.codes.ACCEPTED).json()["build_id"])
        assert ended.status == "published", (ended.status, ended.error)
    return "4 builds published beside the old worker, which does not see them"


async def refused_by_old(environment: Environment, name: str) -> str:
    """What the old API answers for a model version of the new release, whose rows stay."""
    old = environment.client("old")
    row = f"/models/{name}/embeddings/p1"
    batch = {"embeddings": [{"product_id": "p1", "vector": [1.0] * 8}]}
    statuses = {
        "put": (await old.put(row, json={"vector": [0.0] * 7 + [1.0]})).status_code,
        "batch": (await old.post(f"/models/{name}/embeddings:batch", json=batch)).status_code,
        "delete": (await old.delete(row)).status_code,
        "build": (await old.post(f"/models/{name}/builds", json={})).status_code,
        "search": (
            await old.post(f"/models/{name}/search", json={"vector": [1.0] * 8})
        ).status_code,
    }
    assert all(status >= httpx.codes.BAD_REQUEST for status in statuses.values()), statuses
    listed_by_old = code(await old.get(f"/models/{name}/embeddings"), httpx.codes.OK).json()
    found, expected = await listed(environment, "new", name), _rows_of_new()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
    told = ", ".join(f"{what} {status}" for what, status in statuses.items())
    return f"{told}; it lists {len(listed_by_old['items'])} of {len(found)} rows; nothing changes"


async def verified(environment: Environment, model: str) -> str:
    """A verification that is requested while the old worker runs is done right, by the new one."""
    await environment.start("old-worker", "new-worker")
    out = await environment.k9("new", "verify-build", model)
    return " ".join(out.split())


async def model_deleted(environment: Environment, name: str) -> str:
    """A model version is deleted while old workers run, and its name used again.

    The old worker has a build of it at work when it is marked.
    """
    await environment.start("old-worker", "new-worker")
    old, new = environment.client("old"), environment.client("new")
    rows = {f"p{n}": np.random.default_rng(n).normal(size=8).astype(np.float32) for n in range(200)}
    await store(old, name, rows)
    await build(environment, "old", "old", name)
    await environment.start("new-worker")
    code(await old.post(f"/models/{name}/builds", json={"force": True}), httpx.codes.ACCEPTED)
    code(await new.delete(f"/models/{name}"), httpx.codes.ACCEPTED)

    async def is_gone() -> bool:
        return (await new.get(f"/models/{name}")).status_code == httpx.codes.NOT_FOUND

    took_s = await until(is_gone, _GONE_S)
    keys = await environment.resources.objects.list_keys(f"indexes/{name}/")
    assert not keys, keys
    later = {"p1": np.arange(16, dtype=np.float32), "q": np.ones(16, np.float32)}
    await store(new, name, later)
    found = await listed(environment, "new", name)
    assert sorted(found) == ["p1", "q"]
    assert len(found["p1"]) == 16
    builds = code(await new.get(f"/models/{name}/builds"), httpx.codes.OK).json()["items"]
    assert builds == []
    code(await new.get(f"/models/{name}/embeddings/p5"), httpx.codes.NOT_FOUND)
    return f"gone after {took_s:.0f} s, no file left; the name has 16 numbers a row now"


async def archive_restored(environment: Environment) -> str:
    """A backup that the old release wrote is restored by the new one, to equal data."""
    directory = environment.directory / f"backup-{uuid4().hex[:6]}"
    await environment.k9("old", "backup", str(directory))
    items = sum(
        table["items"]
        for table in json.loads((directory / "manifest.json").read_text())["tables"].values()
    )
    target = f"{environment.settings.environment}-b"
    fresh: dict[str, str] = {"K9_ENVIRONMENT": target, "K9_BUCKET": ""}
    await environment.k9("new", "tables", "create", **fresh)
    await environment.k9("new", "restore", str(directory), **fresh)
    again = environment.directory / f"again-{uuid4().hex[:6]}"
    await environment.k9("new", "backup", str(again), **fresh)
    before, after = _items(directory, "embeddings"), _items(again, "embeddings")
    assert before == after, "the rows differ"
    for table in ("users", "reports", "idempotency"):
        assert _items(directory, table) == _items(again, table), table
    return f"{items} items, byte for byte; models and open builds as the restore says"


def _items(directory: Any, table: str) -> set[bytes]:
    found: set[bytes] = set()
    for path in directory.glob(f"{table}.*.jsonl.gz"):
        found |= set(gzip.decompress(path.read_bytes()).splitlines())
    return found


async def promoted(environment: Environment, release: str, build_id: str) -> str:
    """An earlier build is promoted through a release's API, and both follow it."""
    reply = await environment.client(release).post(
        f"/models/{MODEL}/promote", json={"build_id": build_id}
    )
    code(reply, httpx.codes.OK)
    return "; ".join([await follows(environment, name, build_id) for name in environment.apis])


async def matrix(environment: Environment, release: str) -> str:
    """The matrix of the current build is given out by a release."""
    reply = await environment.client(release).get(f"/models/{MODEL}/matrix")
    body = code(reply, httpx.codes.OK).json()
    size = 0
    async with httpx.AsyncClient() as client:
        for url in (value for value in _urls(body)):
            size += len(code(await client.get(url), httpx.codes.OK).content)
    return f"{size} bytes by its addresses"


def _urls(body: Any) -> list[str]:
    if isinstance(body, dict):
        return [url for value in body.values() for url in _urls(value)]
    return [body] if isinstance(body, str) and body.startswith("http") else []


async def taken_over(environment: Environment, first: str) -> str:
    """SIGKILL to a worker in a build, for good: the worker of the other release does the build."""
    second = OTHER[first]
    await environment.start(f"{first}-worker")
    await environment.stop(f"{second}-worker")
    body = {"matrix_k": 20, "force": True}
    reply = await environment.client(second).post(f"/models/{MODEL}/builds", json=body)
    build_id = code(reply, httpx.codes.ACCEPTED).json()["build_id"]
    running = await _built_so_far(environment, build_id)
    await environment.kill_worker(first)
    await environment.start(f"{second}-worker")
    ended = await environment.build(build_id)
    assert ended.status == "published", (ended.status, ended.error)
    assert ended.fence > running.fence
    followed = await follows(environment, "new", build_id)
    return f"killed in stage {running.progress.stage}, published by the {second} worker; {followed}"


async def _built_so_far(environment: Environment, build_id: str) -> Build:
    """A build once its rows are read, which must find it running."""
    running = await build_until(
        environment.resources,
        build_id,
        lambda build: not build.open or build.progress.stage not in {"queued", "pull"},
    )
    assert running.open, running.status
    return running


async def killed_in_build(environment: Environment, release: str, requester: str) -> str:
    """SIGKILL to a worker in a build: it is done by the worker that takes its place."""
    await environment.start(f"{release}-worker")
    body = {"matrix_k": 20, "force": True}
    reply = await environment.client(requester).post(f"/models/{MODEL}/builds", json=body)
    build_id = code(reply, httpx.codes.ACCEPTED).json()["build_id"]
    running = await _built_so_far(environment, build_id)
    stage = running.progress.stage
    assert environment.programs[f"{release}-worker"].kill()
    ended = await environment.build(build_id)
    assert ended.status == "published", (ended.status, ended.error)
    assert ended.fence > running.fence
    return f"killed in stage {stage}; published by attempt {ended.fence}: {build_id}"
