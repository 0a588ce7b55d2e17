"""Rates of requests by right, over HTTP and over two processes."""

import msgspec
import pytest

from api.app import create_app
from tests.api.conftest import MODEL, Service
from tests.api.serving import assert_problem, client_of, eventually, path_of, started
from tests.emulators import free_port

SEARCH = path_of(MODEL, "search")
QUESTION = {"product_id": "plain"}


def limited(service: Service, *rates: str, redis_url: str = "") -> Service:
    """The same service in another process, with rates."""
    settings = msgspec.structs.replace(
        service.settings,
        http=msgspec.structs.replace(service.settings.http, rates=rates),
        redis_url=redis_url or service.settings.redis_url,
        hint_timeout_s=20.0,  # a busy machine makes no process count alone
    )
    app = create_app(settings, service.resources)
    return Service(app, settings, service.resources, service.pool, service.client)


@pytest.mark.parametrize("away", [False, True])
async def test_a_caller_over_its_rate_is_told_when_to_come_back(
    service: Service,
    away: bool,  # noqa: FBT001
) -> None:
    """429 with the fields of the draft, whatever is asked; other callers are answered."""
    url = f"redis://127.0.0.1:{free_port()}/0" if away else ""
    here = limited(service, "group:readers=3/60", redis_url=url)
    token = service.pool.token("readers", sub=f"flood-{away}")
    other = service.pool.token("readers", sub=f"calm-{away}")
    async with (
        started(here.app),
        client_of(here.app, token) as flood,
        client_of(here.app, other) as calm,
        client_of(here.app, service.pool.token("operators")) as operator,
    ):
        await eventually(operator, MODEL)
        neighbors = path_of(MODEL, "products", "plain", "neighbors")
        replies = [
            await flood.post(SEARCH, json=QUESTION),
            await flood.get(neighbors),
            await flood.get("/models"),
        ]
        assert [reply.status_code for reply in replies] == [200] * 3
        assert [reply.headers["ratelimit"] for reply in replies] == [
            '"group:readers";r=2;t=20',
            '"group:readers";r=1;t=40',
            '"group:readers";r=0;t=20',
        ]
        assert {reply.headers["ratelimit-policy"] for reply in replies} == {
            '"group:readers";q=3;w=60'
        }
        for reply in (
            await flood.post(SEARCH, json=QUESTION),
            await flood.get(neighbors),
            await flood.get("/models"),
            await flood.post(SEARCH, content=b"x" * 1_000_000),
        ):
            assert_problem(reply, 429, "over-rate")
            assert reply.headers["retry-after"] in {"19", "20"}
            assert reply.headers["ratelimit"] == (
                f'"group:readers";r=0;t={reply.headers["retry-after"]}'
            )
        assert (await calm.post(SEARCH, json=QUESTION)).status_code == 200
        for _ in range(5):
            reply = await operator.post(SEARCH, json=QUESTION)
            assert reply.status_code == 200
            assert "ratelimit" not in reply.headers
        assert (await flood.get("/health/live")).status_code == 200


async def test_two_processes_have_one_rate(service: Service) -> None:
    """What one process has answered counts for the other."""
    one, two = (limited(service, "caller:both=4/60", "*=1000/1") for _ in range(2))
    token = service.pool.token("readers", sub="both")
    async with (
        started(one.app),
        started(two.app),
        client_of(one.app, token) as first,
        client_of(two.app, token) as second,
    ):
        await eventually(first, MODEL)
        await eventually(second, MODEL)
        statuses = []
        for _ in range(3):
            statuses += [
                (await client.post(SEARCH, json=QUESTION)).status_code for client in (first, second)
            ]
        assert statuses == [200] * 4 + [429] * 2


async def test_without_rates_answers_say_nothing_of_them(service: Service) -> None:
    """Byte for byte as before."""
    reply = await service.client.post(SEARCH, json=QUESTION)
    assert not [name for name in reply.headers if name.startswith("ratelimit")]
