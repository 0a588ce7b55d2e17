"""What one caller may take: attacks by several, while a bystander's requests are answered."""

import asyncio
import threading
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY

from api.serving.replica import ModelReplica
from api.serving.snapshot import Snapshot
from core.models import Model
from core.repositories.models import ModelRepository
from tests.api.attacks import (
    QUESTION,
    SEARCH,
    Held,
    admission,
    all_given_back,
    caller,
    limited,
    until,
)
from tests.api.conftest import MODEL, Service, filled
from tests.api.serving import assert_problem, eventually, path_of, vector

EXACT = {"vectors": [vector(n).tolist() for n in range(256)], "exact": True, "k": 10}


def shed(resource: str, cause: str) -> float:
    """How many were turned away so far."""
    labels = {"resource": resource, "cause": cause}
    return REGISTRY.get_sample_value("k9_http_shed_total", labels) or 0.0


async def test_searches_that_wait_for_each_other_are_not_refused_for_it(service: Service) -> None:
    """One caller sends more short searches at once than its share of reads: all are answered."""
    async with (
        limited(service, memory_requests_max=8) as app,
        caller(service, app, "many") as client,
    ):
        replies = await asyncio.gather(*(client.post(SEARCH, json=QUESTION) for _ in range(40)))
        assert [reply.status_code for reply in replies] == [200] * 40
        all_given_back(app)


async def test_bodies_that_arrive_slowly_hold_nothing_but_their_callers_share(
    service: Service,
) -> None:
    """Two callers fill their shares; a third one's searches and reports are all answered."""
    async with (
        limited(service, arriving_bodies_max=6, memory_requests_max=2) as app,
        caller(service, app, "slow-1") as first,
        caller(service, app, "slow-2") as second,
        caller(service, app, "bystander") as bystander,
    ):
        held = Held()
        for client in (first, second):
            for _ in range(2):
                held.post(client)
        await until(lambda: admission(app).arriving.in_use == 4)
        before = shed("bodies", "share")
        reply = await first.post(SEARCH, json=QUESTION)
        assert_problem(reply, 429, "over-share")
        assert int(reply.headers["retry-after"]) >= 1
        assert shed("bodies", "share") == before + 1
        for _ in range(20):
            assert (await bystander.post(SEARCH, json=QUESTION)).status_code == 200
        assert (await bystander.post("/reports", json={"title": "x"})).status_code == 201
        assert (await first.get(path_of(MODEL, "products", "plain", "neighbors"))).is_success
        assert await held.let_go() == [200] * 4
        assert (await first.post(SEARCH, json=QUESTION)).status_code == 200
        all_given_back(app)


async def test_it_is_503_only_where_the_process_as_a_whole_is_full(service: Service) -> None:
    """A caller that holds nothing is turned away once nothing is left; health still answers."""
    async with (
        limited(service, arriving_bodies_max=2) as app,
        caller(service, app, "full-1") as first,
        caller(service, app, "full-2") as second,
        caller(service, app, "full-3") as third,
    ):
        held = Held()
        held.post(first)
        held.post(second)
        await until(lambda: admission(app).arriving.in_use == 2)
        assert_problem(await first.post(SEARCH, json=QUESTION), 429)
        reply = await third.post(SEARCH, json=QUESTION)
        assert_problem(reply, 503, "overloaded")
        assert int(reply.headers["retry-after"]) >= 1
        assert (await third.get("/health/ready")).status_code == 200
        assert await held.let_go() == [200, 200]
        assert (await third.post(SEARCH, json=QUESTION)).status_code == 200
        all_given_back(app)


async def test_a_body_counts_as_it_arrives_and_not_as_it_is_announced(service: Service) -> None:
    """Three large bodies announced, of which a byte came, keep nobody's out."""
    async with (
        limited(service, buffered_bytes_max=40_000_000) as app,
        caller(service, app, "announcer", "operators") as attacker,
        caller(service, app, "bystander", "operators") as bystander,
    ):
        held = Held()
        batch = path_of(MODEL, "embeddings:batch")
        for _ in range(3):
            held.post(attacker, batch, rest=b"", content_length=str(96 * 1024 * 1024))
        await until(lambda: admission(app).arriving.in_use == 3)
        assert admission(app).buffered.in_use == 3
        entries = [
            {"product_id": f"by-{n}", "vector": vector(n).tolist() * 512} for n in range(200)
        ]
        reply = await bystander.post(
            path_of("m-admitted", "embeddings:batch"), json={"embeddings": entries}
        )
        assert reply.status_code == 200, reply.text
        assert await held.let_go() == [400] * 3
        all_given_back(app)


async def test_bytes_in_memory_are_shared(service: Service) -> None:
    """A caller that holds half of them is turned away, another one is not."""
    async with (
        limited(service, buffered_bytes_max=100_000) as app,
        caller(service, app, "hoarder") as hoarder,
        caller(service, app, "bystander") as bystander,
    ):
        held = Held()
        held.post(hoarder, first=b"{" + b" " * 49_000)
        await until(lambda: admission(app).buffered.in_use > 49_000)
        large = msgspec.json.encode(QUESTION) + b" " * 20_000
        assert_problem(await hoarder.post(SEARCH, content=large), 429, "over-share")
        assert (await bystander.post(SEARCH, content=large)).status_code == 200
        assert await held.let_go() == [200]
        alone = msgspec.json.encode(QUESTION) + b" " * 150_000
        assert (await hoarder.post(SEARCH, content=alone)).status_code == 200
        all_given_back(app)


async def test_a_body_that_is_too_slow_is_cut_off(service: Service) -> None:
    """By its rate, after a while of grace; one that comes is waited for up to the timeout."""
    async with (
        limited(service, body_grace_s=0.2, body_rate_min=1000, body_timeout_s=5.0) as app,
        caller(service, app, "slow") as slow,
        caller(service, app, "steady") as steady,
    ):
        before = shed("bodies", "rate")

        async def trickle() -> Any:
            yield msgspec.json.encode(QUESTION)
            for _ in range(20):  # twice the rate
                await asyncio.sleep(0.05)
                yield b" " * 100

        held = Held()
        cut = held.post(slow)
        assert (await steady.post(SEARCH, content=trickle())).status_code == 200
        assert_problem(await cut, 400, "unreadable")
        assert shed("bodies", "rate") == before + 1
        all_given_back(app)


@pytest.mark.parametrize(
    ("method", "path", "most"),
    [
        ("POST", "/users", 1024**2),
        ("PATCH", "/users/me", 1024**2),
        ("POST", "/reports", 1024**2),
        ("PATCH", "/reports/" + "0" * 32, 1024**2),
        ("POST", path_of(MODEL, "builds"), 1024**2),
        ("PUT", path_of(MODEL, "embeddings", "a"), 4096 * 32 + 64 * 1024),
        ("POST", path_of(MODEL, "embeddings:batch"), 96 * 1024**2),
        ("POST", path_of("m-nowhere", "search"), 64 * 1024**2),
        ("POST", SEARCH, 8 * 1024**2),
    ],
)
async def test_each_route_has_a_limit_which_is_told_by_the_announced_length(
    service: Service, method: str, path: str, most: int
) -> None:
    """413 before a byte is asked for, and, where no length is announced, as soon as it is over."""
    asked = False

    async def unsent() -> Any:
        nonlocal asked
        asked = True
        yield b"{"

    async def endless() -> Any:
        while True:
            yield b" " * 1024**2

    async with limited(service) as app, caller(service, app, "large", "operators") as client:
        headers = {"content-length": str(most + 1), "expect": "100-continue"}
        reply = await client.request(method, path, content=unsent(), headers=headers)
        assert_problem(reply, 413, "too-large")
        assert not asked
        reply = await client.request(
            method, path, content=endless(), headers={"expect": "100-continue"}
        )
        assert_problem(reply, 413, "too-large")
        all_given_back(app)


class Gate:
    """Exact searches, which run on threads, stop here until they are let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.steps: list[int] = []
        """The k of each step that ran, in order, which tells the searches apart."""
        self.exact_ms = 2.0
        """What an exact search is estimated at; others are estimated at nothing."""
        search = Snapshot.search

        def gated(snapshot: Snapshot, vectors: Any, k: int, *, exact: bool, **more: Any) -> Any:
            if exact:
                assert self.open.wait(20)
                self.steps.append(k)
            return search(snapshot, vectors, k, exact=exact, **more)

        def search_us(
            _snapshot: Snapshot, _vectors: int, _k: int, *, exact: bool, **_: int
        ) -> float:
            return 1000 * self.exact_ms if exact else 0.0

        monkeypatch.setattr(Snapshot, "search", gated)
        monkeypatch.setattr(Snapshot, "search_us", search_us)


async def test_large_searches_take_turns_by_caller(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of another caller begins before those of the first are through; small ones go on."""
    gate = Gate(monkeypatch)
    async with (
        limited(service, {"search_threads": 1}) as app,
        caller(service, app, "many") as many,
        caller(service, app, "few") as few,
    ):
        asked = [EXACT | {"k": k} for k in (11, 12, 13, 14)]
        running = [asyncio.create_task(many.post(SEARCH, json=body)) for body in asked]
        await until(lambda: admission(app).searches.in_use == 4)
        late = asyncio.create_task(few.post(SEARCH, json=EXACT | {"k": 21}))
        await until(lambda: admission(app).searches.in_use == 5)
        for client in (many, few):
            assert (await client.post(SEARCH, json=QUESTION)).status_code == 200
        gate.open.set()
        replies = await asyncio.gather(*running, late)
        assert [reply.status_code for reply in replies] == [200] * 5
        assert [len(reply.json()["results"]) for reply in replies] == [256] * 5
        # 2 steps each: the late one had every other turn from the second on.
        assert gate.steps[:4] == [11, 21, 11, 21]
        begun = [gate.steps.index(k) for k in (11, 12, 13, 14)]
        assert begun == sorted(begun)
        all_given_back(app)


async def test_large_searches_are_shared_by_number_and_by_work(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over its share a caller gets 429, for one of another there is room."""
    gate = Gate(monkeypatch)
    for limits, cost_ms, resource in (
        ({"large_searches_max": 4}, 2.0, "large searches"),
        ({"search_queue_s": 60.0}, 50_000.0, "milliseconds of large searches"),
    ):
        gate.open.clear()
        gate.exact_ms = cost_ms
        async with (
            limited(service, limits) as app,
            caller(service, app, "many") as many,
            caller(service, app, "few") as few,
        ):
            running = [asyncio.create_task(many.post(SEARCH, json=EXACT)) for _ in range(2)]
            await until(lambda: admission(app).searches.in_use == 2)
            before = shed(resource, "share")
            reply = await many.post(SEARCH, json=EXACT)
            assert_problem(reply, 429, "over-share")
            assert reply.headers["retry-after"]
            assert shed(resource, "share") == before + 1
            running.append(asyncio.create_task(few.post(SEARCH, json=EXACT)))
            await until(lambda: admission(app).searches.in_use == 3)
            gate.open.set()
            replies = await asyncio.gather(*running)
            assert [reply.status_code for reply in replies] == [200] * 3
            all_given_back(app)


async def test_a_large_search_waits_for_its_turn_for_so_long(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is 503, and the turn goes to the next."""
    gate = Gate(monkeypatch)
    async with (
        limited(service, {"search_queue_s": 0.2, "search_threads": 1}) as app,
        caller(service, app, "first") as first,
        caller(service, app, "second") as second,
    ):
        running = asyncio.create_task(first.post(SEARCH, json=EXACT))
        await until(lambda: admission(app).searches.in_use == 1)
        before = shed("large searches", "deadline")
        assert_problem(await second.post(SEARCH, json=EXACT), 503, "overloaded")
        assert shed("large searches", "deadline") == before + 1
        gate.open.set()
        assert (await running).status_code == 200
        assert (await second.post(SEARCH, json=EXACT)).status_code == 200
        all_given_back(app)


async def test_waits_for_a_watermark_are_shared(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real ones too: over its share a caller gets 429, and all other searches are answered."""
    model = "m-waits"
    search = path_of(model, "search")
    question = {"product_id": "p0"}
    await filled(service, model, 5, 4)
    written = await service.client.put(
        path_of(model, "embeddings", "waited-for"), json={"vector": vector(77, 4).tolist()}
    )
    token = written.headers["x-watermark"]
    release = asyncio.Event()

    async def held_up(*_: Any) -> bool:
        await release.wait()
        return True

    async with (
        limited(service, watermark_waits_max=4) as app,
        caller(service, app, "waiting") as waiting,
        caller(service, app, "bystander") as bystander,
    ):
        await eventually(waiting, model)
        monkeypatch.setattr(ModelReplica, "catch_up", held_up)
        monkeypatch.setattr(Snapshot, "reflects", lambda *_: False)
        body = question | {"min_watermark": token}
        held = [asyncio.create_task(waiting.post(search, json=body)) for _ in range(2)]
        await until(lambda: admission(app).waits.in_use == 2)
        assert_problem(await waiting.post(search, json=body), 429, "over-share")
        assert (await waiting.post(search, json=question)).status_code == 200
        held.append(asyncio.create_task(bystander.post(search, json=body)))
        await until(lambda: admission(app).waits.in_use == 3)
        release.set()
        assert [reply.status_code for reply in await asyncio.gather(*held)] == [200] * 3
        all_given_back(app)


async def test_calls_to_dynamodb_leave_room_for_searches(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow ones are bounded by caller, made-up model versions too, and keep no search out."""
    release = asyncio.Event()

    models = type(service.resources.models)
    list_models = models.list_models

    async def held_up(repository: ModelRepository) -> list[Model]:
        await release.wait()
        return await list_models(repository)

    monkeypatch.setattr(models, "list_models", held_up)
    async with (
        limited(service, concurrent_requests_max=4) as app,
        caller(service, app, "busy") as busy,
        caller(service, app, "bystander") as bystander,
    ):
        held = [asyncio.create_task(busy.get("/models")) for _ in range(2)]
        await until(lambda: admission(app).calls.in_use == 2)
        assert_problem(await busy.get("/models"), 429, "over-share")
        nowhere = path_of("m-made-up", "search")
        assert_problem(await busy.post(nowhere, json=QUESTION), 429, "over-share")
        assert (await busy.post(SEARCH, json=QUESTION)).status_code == 200
        assert (await bystander.get("/reports")).status_code == 200
        release.set()
        assert [reply.status_code for reply in await asyncio.gather(*held)] == [200] * 2
        assert_problem(await busy.post(nowhere, json=QUESTION), 404)
        all_given_back(app)
