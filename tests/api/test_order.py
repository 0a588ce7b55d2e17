"""Of several things wrong with a request the contract says which is told."""

import msgspec
import pytest

from tests.api.conftest import MODEL, Service
from tests.api.serving import assert_problem, path_of

BLANK = {"product_id": " "}


@pytest.fixture(scope="module")
async def unbuilt(service: Service) -> str:
    """A model version of three numbers a row, without an index."""
    path = path_of("m-ordered", "embeddings", "a")
    assert (await service.client.put(path, json={"vector": [1, 2, 3]})).status_code in {200, 201}
    return "m-ordered"


@pytest.mark.parametrize(
    "body", [BLANK, {"vector": []}, {"vector": [1e39]}, {"product_id": "x" * 2000}]
)
async def test_what_does_not_hold_is_told_before_what_is_not_there(
    service: Service, unbuilt: str, body: dict[str, object]
) -> None:
    """A bad search of an unknown model version, or one without an index, is 422."""
    for name in ("m-nowhere", unbuilt):
        assert_problem(await service.client.post(path_of(name, "search"), json=body), 422)
    good = {"vector": [1.0, 2.0, 3.0]}
    assert_problem(await service.client.post(path_of("m-nowhere", "search"), json=good), 404)
    assert_problem(await service.client.post(path_of(unbuilt, "search"), json=good), 409)


async def test_a_wrong_dimension_is_told_before_a_missing_index(
    service: Service, unbuilt: str
) -> None:
    """Both numbers are named, from the model version's record."""
    reply = await service.client.post(path_of(unbuilt, "search"), json={"vector": [1.0]})
    body = assert_problem(reply, 422)
    assert "has 1 numbers, the model version has 3" in body["detail"]


async def test_neighbours_of_a_bad_id_are_422(service: Service, unbuilt: str) -> None:
    """Whether or not there is a model version or an index."""
    for name in ("m-nowhere", unbuilt, MODEL):
        assert_problem(await service.client.get(path_of(name, "products", " ", "neighbors")), 422)


async def test_what_cannot_be_read_is_told_first(service: Service) -> None:
    """A broken watermark goes before a k of 0, a broken query before a bad vector."""
    search = {"vector": [1.0], "k": 0, "min_watermark": "x"}
    assert_problem(await service.client.post(path_of(MODEL, "search"), json=search), 400)
    path = path_of(MODEL, "embeddings", "a") + "?metric=%ff"
    assert_problem(await service.client.put(path, json={"vector": 5}), 400)


@pytest.mark.parametrize("kind", ["json", "msgpack"])
async def test_a_list_of_far_too_many_is_refused_before_it_is_made(
    service: Service, kind: str
) -> None:
    """A small body of very many entries is a 422, and costs about what its bytes do."""
    many = 1_500_000
    data = b'{"vectors":[' + b"1," * many + b"1]}"
    if kind == "msgpack":
        data = b"\x81\xa7vectors\xdd" + many.to_bytes(4, "big") + b"\x01" * many
    for path in (path_of(MODEL, "search"), path_of(MODEL, "embeddings:batch")):
        sent = data.replace(b"vectors", b"embeddings") if "batch" in path else data
        if kind == "msgpack":
            sent = sent.replace(b"\xa7embeddings", b"\xaaembeddings")
        reply = await service.client.post(
            path, content=sent, headers={"content-type": f"application/{kind}"}
        )
        assert_problem(reply, 422)
    assert msgspec.json.decode((await service.client.get("/health/live")).content)
