"""Media types, codings, lists in headers and numbers, as they come over HTTP; order of errors."""

import gzip
from typing import Any

import httpx
import msgspec
import pytest
from backports import zstd

from tests.api.conftest import MODEL, Service
from tests.api.people import person
from tests.api.serving import assert_problem, build_here, client_of, eventually, path_of, vector

SEARCH = path_of(MODEL, "search")
GOOD = msgspec.json.encode({"product_id": "plain", "k": 2})


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_a_coded_body_is_read_within_the_limit_of_its_route(
    service: Service, coding: str
) -> None:
    """Searches, batches and reports; a bomb is 413, one that is broken 400."""
    compress = gzip.compress if coding == "gzip" else zstd.compress
    headers = {"content-encoding": coding}
    client = service.client
    plain = await client.post(SEARCH, content=GOOD)
    coded = await client.post(SEARCH, content=compress(GOOD), headers=headers)
    assert coded.json()["neighbors"] == plain.json()["neighbors"]
    entries = [{"product_id": f"c-{n}", "vector": vector(n).tolist()} for n in range(200)]
    batch = msgspec.json.encode({"embeddings": entries})
    reply = await client.post(
        path_of("m-coded", "embeddings:batch"), content=compress(batch), headers=headers
    )
    assert reply.json() == {"stored": 200}
    bomb = compress(b" " * 20_000_000)
    for path in (SEARCH, "/reports", "/users"):
        assert_problem(await client.post(path, content=bomb, headers=headers), 413, "too-large")
        broken = await client.post(path, content=bomb[:-9], headers=headers)
        assert broken.status_code in {400, 413}
        assert_problem(await client.post(path, content=b"{}", headers=headers), 400)


async def test_a_body_of_another_type_or_coding_is_refused_by_name(service: Service) -> None:
    """415; a coding with those that are taken."""
    for path in (SEARCH, "/reports"):
        reply = await service.client.post(path, content=GOOD, headers={"content-encoding": "br"})
        assert_problem(reply, 415, "unsupported-type")
        assert reply.headers["accept-encoding"] == "gzip, zstd"
        for name in ("text/plain", "application/msgpack-foo", "multipart/form-data"):
            reply = await service.client.post(path, content=GOOD, headers={"content-type": name})
            assert_problem(reply, 415, "unsupported-type")
    packed = {"content-type": "application/msgpack"}
    assert_problem(await service.client.post("/reports", content=b"\x80", headers=packed), 415)


async def test_an_answer_is_negotiated(service: Service) -> None:
    """`q=0` is a refusal, and a longer name is another type."""
    for accept, expected in (
        ("application/msgpack;q=0", "json"),
        ("application/msgpack-foo", "json"),
        ("application/json;q=0.1, application/msgpack", "msgpack"),
    ):
        reply = await service.client.post(SEARCH, content=GOOD, headers={"accept": accept})
        assert reply.headers["content-type"] == f"application/{expected}"
    lines = [("accept", "application/json;q=0.1"), ("accept", "application/msgpack")]
    reply = await service.client.post(SEARCH, content=GOOD, headers=lines)
    assert reply.headers["content-type"] == "application/msgpack"


async def test_several_lines_of_if_match_are_one_list(service: Service) -> None:
    """Whichever line the present tag is on."""
    async with person(service) as ada:
        report = await ada.report()
        path = f"/reports/{report['id']}"
        for version, tags in ((1, ('"1"', '"9"')), (2, ('"9"', '"2"'))):
            reply = await ada.client.patch(
                path,
                json={"title": f"version {version + 1}"},
                headers=[("if-match", tag) for tag in tags],
            )
            assert reply.status_code == 200, reply.text


async def test_a_whole_number_may_be_written_with_a_point(service: Service) -> None:
    """10, 10.0 and 1e1 are one number; one with a fraction is named."""
    for k in ("2", "2.0", "2e0", "20e-1"):
        reply = await service.client.post(
            SEARCH, content=f'{{"product_id": "plain", "k": {k}}}'.encode()
        )
        assert len(reply.json()["neighbors"]) == 2, reply.text
    for k in ("2.5", "1e300", "-1.0"):
        reply = await service.client.post(
            SEARCH, content=f'{{"product_id": "plain", "k": {k}}}'.encode()
        )
        assert assert_problem(reply, 422, "invalid")["errors"][0]["field"] == "k"
    builds = path_of("m-whole", "builds")
    await service.client.put(
        path_of("m-whole", "embeddings", "a"), json={"vector": vector(1).tolist()}
    )
    reply = await service.client.post(builds, content=b'{"matrix_k": 5.0}')
    assert reply.json()["parameters"]["matrix_k"] == 5
    reply = await service.client.post(builds, content=b'{"matrix_k": 5.5}')
    assert_problem(reply, 422, "invalid")


async def test_errors_come_in_the_contracts_order(service: Service) -> None:
    """A request with everything wrong is told the first of them, and so on once that is mended."""
    large = str(99 * 1024**2)
    key = {"idempotency-key": "x" * 300}
    wrong: dict[str, Any] = {
        "content-length": large,
        "content-type": "text/plain",
        "content-encoding": "gzip",
    }

    async def told(
        client: httpx.AsyncClient, path: str, body: bytes, *left_out: str, method: str = "PUT"
    ) -> int:
        async def sent() -> Any:
            yield body

        headers = {name: value for name, value in wrong.items() if name not in left_out}
        reply = await client.request(method, path, content=sent(), headers=headers | key)
        return reply.status_code

    path = path_of(MODEL, "embeddings", " ")
    async with (
        client_of(service.app) as stranger,
        client_of(service.app, service.pool.token()) as caller,
    ):
        operator = service.client
        bomb = gzip.compress(b" " * 5_000_000)
        for client in (stranger, caller, operator):
            assert await told(client, "/nothing", bomb) == 404
            assert await told(client, path, bomb, method="POST") == 405
        assert await told(stranger, path, bomb) == 401
        assert await told(caller, path, bomb) == 403
        assert await told(operator, path, bomb) == 413
        assert await told(operator, path, bomb, "content-length") == 415
        assert await told(operator, path, bomb, "content-length", "content-type") == 413
        unreadable = gzip.compress(b"{")
        assert await told(operator, path, unreadable, "content-length", "content-type") == 400
        invalid = gzip.compress(b'{"vector": 5}')
        reply = await operator.put(
            path, content=invalid, headers={"content-encoding": "gzip"} | key
        )
        assert assert_problem(reply, 422)["errors"][0]["field"] == "Idempotency-Key"


async def test_what_cannot_be_read_is_told_before_what_a_key_says(service: Service) -> None:
    """And what the key says before what is not valid."""
    async with person(service) as ada:
        key = {"idempotency-key": "k-order"}
        first = await ada.client.post("/reports", json={"title": "x"}, headers=key)
        assert first.status_code == 201
        assert_problem(await ada.client.post("/reports", content=b"{", headers=key), 400)
        for body in ({"title": ""}, {"title": "y"}):
            reply = await ada.client.post("/reports", json=body, headers=key)
            assert_problem(reply, 422, "key-reused")
        again = await ada.client.post("/reports", json={"title": "x"}, headers=key)
        assert again.json() == first.json()


async def test_no_score_is_minus_zero(service: Service) -> None:
    """A product at no distance has the score 0, in JSON too."""
    model = "m-zero"
    for product_id in ("a", "b"):
        path = path_of(model, "embeddings", product_id)
        await service.client.put(f"{path}?metric=l2", json={"vector": [1.0, 2.0]})
    reply = await service.client.post(path_of(model, "builds"), json={})
    build_id = reply.json()["build_id"]
    await build_here(service.resources, build_id)
    await eventually(service.client, model)
    found = await service.client.post(path_of(model, "search"), json={"vector": [1.0, 2.0]})
    near = await service.client.get(path_of(model, "products", "a", "neighbors"))
    for reply in (found, near):
        assert '"score":0.0' in reply.text
        assert "-0.0" not in reply.text
