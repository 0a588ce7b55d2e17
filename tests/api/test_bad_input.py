"""Bad input: each a clear 4xx, with nothing stored and nothing broken after it."""

from typing import Any

import httpx
import msgspec
import pytest

from core.limits import BATCH_ROWS_MAX
from tests.api.conftest import MODEL, Service
from tests.api.serving import DIMENSION, assert_problem, path_of, vector

PUT = path_of(MODEL, "embeddings", "bad")
BATCH = f"/models/{MODEL}/embeddings:batch"
SEARCH = f"/models/{MODEL}/search"
BUILDS = f"/models/{MODEL}/builds"
MSGPACK = {"content-type": "application/msgpack"}

_ONES = ", ".join(["1"] * (DIMENSION - 1))
_GOOD = vector(1).tolist()
_NESTED = b"[" * 5000 + b"]" * 5000


def _vectors(number: str) -> bytes:
    return f'{{"vector": [{number}, {_ONES}]}}'.encode()


VECTORS: list[tuple[str, bytes, int, str]] = [
    ("NaN", _vectors("NaN"), 400, "unreadable"),
    ("infinity", _vectors("Infinity"), 400, "unreadable"),
    ("1e39, infinite as float32", _vectors("1e39"), 422, "invalid"),
    ("1e400, infinite as float64", _vectors("1e400"), 422, "invalid"),
    ("a number of 400 digits", _vectors("9" * 400), 422, "invalid"),
    ("a zero vector under cosine", _vectors("0").replace(b"1", b"0"), 422, "invalid"),
    ("one number too few", f'{{"vector": [{_ONES}]}}'.encode(), 422, "invalid"),
    ("no numbers", b'{"vector": []}', 422, "invalid"),
    ("20,000 numbers", msgspec.json.encode({"vector": [0.5] * 20_000}), 422, "invalid"),
    ("a bool", _vectors("true"), 422, "invalid"),
    ("a string", _vectors('"1"'), 422, "invalid"),
    ("a null", _vectors("null"), 422, "invalid"),
    ("a list in the list", _vectors("[1]"), 422, "invalid"),
    ("no vector", b"{}", 422, "invalid"),
    ("null for a vector", b'{"vector": null}', 422, "invalid"),
    ("an unknown field", b'{"vector": [1], "vektor": 1}', 422, "invalid"),
    ("a list for a body", b"[]", 422, "invalid"),
    ("an empty body", b"", 400, "unreadable"),
    ("half a body", b'{"vector": [1, 2', 400, "unreadable"),
    ("no JSON", b"hello", 400, "unreadable"),
    ("bytes that are no UTF-8", b'{"vector\xff": 1}', 400, "unreadable"),
    ("5,000 levels in an unknown field", b'{"x": ' + _NESTED + b"}", 400, "unreadable"),
    ("5,000 levels in the vector", b'{"vector": ' + _NESTED + b"}", 400, "unreadable"),
    ("100,000 levels, never closed", b'{"vector": ' + b"[" * 100_000, 400, "unreadable"),
]

PACKED: list[tuple[str, bytes, int, str]] = [
    (
        "msgpack cut short",
        msgspec.msgpack.encode({"vector": vector(1).tobytes()})[:-3],
        400,
        "unreadable",
    ),
    ("bytes that are no whole float32", msgspec.msgpack.encode({"vector": b"123"}), 422, "invalid"),
    ("no bytes", msgspec.msgpack.encode({"vector": b""}), 422, "invalid"),
    (
        "NaN among the bytes",
        msgspec.msgpack.encode({"vector": b"\x00\x00\xc0\x7f" * DIMENSION}),
        422,
        "invalid",
    ),
    ("a text for a vector", msgspec.msgpack.encode({"vector": "text"}), 422, "invalid"),
    ("nested msgpack", b"\x81\xa6vector" + b"\x91" * 100_000, 400, "unreadable"),
    ("NaN among numbers", msgspec.msgpack.encode({"vector": [float("nan")] * 8}), 422, "invalid"),
]


async def _still_works(service: Service) -> None:
    """Nothing was stored under the bad id, and the next good requests are answered."""
    reply = await service.client.get(PUT)
    assert_problem(reply, 404, "not-found")
    reply = await service.client.post(SEARCH, json={"vector": _GOOD, "k": 1})
    assert reply.status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "kind"), [pytest.param(*case[1:], id=case[0]) for case in VECTORS]
)
async def test_a_bad_vector_is_refused_by_put_and_search(
    service: Service, body: bytes, status: int, kind: str
) -> None:
    """The same body is refused in the same way wherever a vector is taken."""
    for method, path in (("PUT", PUT), ("POST", SEARCH)):
        problem = assert_problem(
            await service.client.request(method, path, content=body), status, kind
        )
        if status == 422:
            assert problem["errors"][0]["field"]
            assert problem["errors"][0]["message"]
    await _still_works(service)


@pytest.mark.parametrize(
    ("body", "status", "kind"), [pytest.param(*case[1:], id=case[0]) for case in PACKED]
)
async def test_bad_msgpack_is_refused_by_put_and_search(
    service: Service, body: bytes, status: int, kind: str
) -> None:
    """What msgpack says wrongly is refused as JSON would be."""
    for method, path in (("PUT", PUT), ("POST", SEARCH)):
        reply = await service.client.request(method, path, content=body, headers=MSGPACK)
        assert_problem(reply, status, kind)
    await _still_works(service)


@pytest.mark.parametrize(
    ("given", "numbers"), [([1.0, 2.0], ("2", "8")), ([0.5] * 5000, ("5000", "8"))]
)
async def test_a_wrong_dimension_names_both_numbers(
    client: httpx.AsyncClient, given: list[float], numbers: tuple[str, str]
) -> None:
    """The message says how many came and how many should have."""
    for method, path in (("PUT", PUT), ("POST", SEARCH)):
        problem = assert_problem(
            await client.request(method, path, json={"vector": given}), 422, "invalid"
        )
        assert problem["errors"][0]["field"] == "vector"
        assert all(number in problem["errors"][0]["message"] for number in numbers)


SEARCHES: list[tuple[str, dict[str, Any], str]] = [
    ("k of 0", {"vector": _GOOD, "k": 0}, "k"),
    ("k of -1", {"vector": _GOOD, "k": -1}, "k"),
    ("k of a billion", {"vector": _GOOD, "k": 10**9}, "k"),
    ("k of 10^40", {"vector": _GOOD, "k": 10**40}, "k"),
    ("k of 1.5", {"vector": _GOOD, "k": 1.5}, "k"),
    ("a text for k", {"vector": _GOOD, "k": "10"}, "k"),
    ("a bool for k", {"vector": _GOOD, "k": True}, "k"),
    ("nothing to search by", {"k": 5}, "vector"),
    ("two things to search by", {"vector": _GOOD, "product_id": "plain"}, "product_id"),
    ("no vectors", {"vectors": []}, "vectors"),
    ("257 vectors", {"vectors": [_GOOD] * 257, "k": 1}, "vectors"),
    ("vectors times k over 10,000", {"vectors": [_GOOD] * 11, "k": 1000}, "k"),
    ("one bad vector of three", {"vectors": [_GOOD, _GOOD, [1]]}, "vectors[2]"),
    ("a bool in a vector of three", {"vectors": [_GOOD, [True, *_GOOD[1:]]]}, "vectors[1][0]"),
    ("1,001 ids to exclude", {"vector": _GOOD, "exclude": ["x"] * 1001}, "exclude"),
    ("a number to exclude", {"vector": _GOOD, "exclude": [1]}, "exclude[0]"),
    ("a text for min_score", {"vector": _GOOD, "min_score": "1"}, "min_score"),
    ("a text for exact", {"vector": _GOOD, "exact": "yes"}, "exact"),
    ("a product id of 2,000 characters", {"product_id": "x" * 2000}, "product_id"),
    ("a blank product id", {"product_id": " "}, "product_id"),
]


@pytest.mark.parametrize(
    ("body", "field"), [pytest.param(*case[1:], id=case[0]) for case in SEARCHES]
)
async def test_a_search_that_does_not_hold_names_the_field(
    service: Service, body: dict[str, Any], field: str
) -> None:
    """It is a 422 with the path of the field."""
    problem = assert_problem(await service.client.post(SEARCH, json=body), 422, "invalid")
    assert [error["field"] for error in problem["errors"]] == [field]
    await _still_works(service)


@pytest.mark.parametrize("k", ["0", "-1", "1000000000", "x", "", "1.5", "\uff11", "9" * 5000])
async def test_neighbors_take_a_k_within_bounds(client: httpx.AsyncClient, k: str) -> None:
    """Anything else is a 422 about `k`."""
    path = path_of(MODEL, "products", "plain", "neighbors")
    problem = assert_problem(await client.get(path, params={"k": k}), 422, "invalid")
    assert problem["errors"][0]["field"] == "k"


async def test_what_is_not_there_is_not_found(service: Service) -> None:
    """Unknown models and products are 404, whichever route is asked."""
    client = service.client
    for reply in (
        await client.post(SEARCH, json={"product_id": "nothing"}),
        await client.get(path_of(MODEL, "products", "nothing", "neighbors")),
        await client.get(path_of(MODEL, "embeddings", "nothing")),
        await client.delete(path_of(MODEL, "embeddings", "nothing")),
        await client.post(path_of("unknown", "search"), json={"product_id": "plain"}),
        await client.get(path_of("unknown", "products", "plain", "neighbors")),
        await client.get(path_of("unknown", "embeddings")),
        await client.delete(path_of("unknown", "embeddings", "plain")),
        await client.get(path_of("unknown", "matrix")),
        await client.get(path_of("unknown", "builds")),
        await client.post(path_of("unknown", "builds"), json={}),
        await client.get("/models/unknown"),
        await client.get("/builds/unknown"),
        await client.get("/builds/" + "x" * 4000),
        await client.get("/nothing"),
        await client.get("/"),
    ):
        assert_problem(reply, 404, "not-found")


@pytest.mark.parametrize("name", ["-x", "a b", "a" * 65, "ü", "a%2Fb", "%20"])
async def test_a_bad_name_of_a_model_version_is_refused_everywhere(
    client: httpx.AsyncClient, name: str
) -> None:
    """It is a 422 that says what a good one is."""
    for reply in (
        await client.post(f"/models/{name}/search", json={"vector": _GOOD}),
        await client.get(f"/models/{name}/products/x/neighbors"),
        await client.put(f"/models/{name}/embeddings/x", json={"vector": _GOOD}),
        await client.get(f"/models/{name}/embeddings/x"),
        await client.delete(f"/models/{name}/embeddings/x"),
        await client.get(f"/models/{name}/embeddings"),
        await client.post(f"/models/{name}/builds", json={}),
        await client.get(f"/models/{name}/builds"),
        await client.get(f"/models/{name}"),
        await client.get(f"/models/{name}/matrix"),
    ):
        assert_problem(reply, 422, "invalid")


@pytest.mark.parametrize("product_id", ["x" * 2000, "ü" * 257, "%20", "%2E", "%2E%2E", "a%00b"])
async def test_a_bad_product_id_in_a_path_is_refused(
    client: httpx.AsyncClient, product_id: str
) -> None:
    """Too long, blank, dots alone, control characters: a 422 about `product_id`."""
    path = f"/models/{MODEL}/embeddings/{product_id}"
    for reply in (
        await client.put(path, json={"vector": _GOOD}),
        await client.get(path),
        await client.delete(path),
        await client.get(f"/models/{MODEL}/products/{product_id}/neighbors"),
    ):
        problem = assert_problem(reply, 422, "invalid")
        assert problem["errors"][0]["field"] == "product_id"


def _batch(*entries: Any) -> dict[str, Any]:
    return {"embeddings": list(entries)}


def _entry(product_id: str, given: Any = _GOOD) -> dict[str, Any]:
    return {"product_id": product_id, "vector": given}


BATCHES: list[tuple[str, Any, list[str]]] = [
    ("1,001 entries", _batch(*(_entry(f"b-{n}") for n in range(1001))), ["embeddings"]),
    ("no entries", _batch(), ["embeddings"]),
    ("one bad entry", _batch(_entry("bad"), _entry("b", [1, 2])), ["embeddings[1].vector"]),
    (
        "a bool in one entry and a wrong dimension in another",
        _batch(_entry("bad"), _entry("b", [True] * 8), _entry("c"), _entry("d", [1])),
        ["embeddings[1].vector[0]", "embeddings[3].vector"],
    ),
    ("the same product twice", _batch(_entry("bad"), _entry("bad")), ["embeddings[1].product_id"]),
    ("a blank id", _batch(_entry("bad"), _entry(" ")), ["embeddings[1].product_id"]),
    ("an id of 2,000", _batch(_entry("x" * 2000), _entry("bad")), ["embeddings[0].product_id"]),
    ("a missing id", _batch(_entry("bad"), {"vector": _GOOD}), ["embeddings[1].product_id"]),
    (
        "an unknown field in an entry",
        _batch(_entry("bad"), _entry("b") | {"price": 1}),
        ["embeddings[1].price"],
    ),
    ("an entry that is none", _batch(_entry("bad"), 5), ["embeddings[1]"]),
    ("no list", {"embeddings": {}}, ["embeddings"]),
]


@pytest.mark.parametrize("packed", [False, True], ids=["json", "msgpack"])
@pytest.mark.parametrize(
    ("body", "fields"), [pytest.param(*case[1:], id=case[0]) for case in BATCHES]
)
async def test_a_batch_with_a_bad_entry_stores_nothing(
    service: Service, body: Any, fields: list[str], *, packed: bool
) -> None:
    """Every bad entry is named, and the good ones are not stored either."""
    if packed:
        reply = await service.client.post(
            BATCH, content=msgspec.msgpack.encode(body), headers=MSGPACK
        )
    else:
        reply = await service.client.post(BATCH, json=body)
    problem = assert_problem(reply, 422, "invalid")
    assert [error["field"] for error in problem["errors"]] == fields
    await _still_works(service)


async def test_every_bad_entry_of_the_largest_batch_is_named(service: Service) -> None:
    """However many errors each of them has; what is beyond the limit of an answer is left out."""
    entries = [_entry(" ", [1]) for _ in range(BATCH_ROWS_MAX)]
    problem = assert_problem(await service.client.post(BATCH, json=_batch(*entries)), 422)
    named = {error["field"].partition(".")[0] for error in problem["errors"]}
    assert named == {f"embeddings[{row}]" for row in range(BATCH_ROWS_MAX)}


async def test_a_new_model_without_a_common_dimension_is_refused(service: Service) -> None:
    """Most entries fix it: a tie refuses the whole batch, and one short entry is named."""
    new = "/models/undecided/embeddings:batch"
    reply = await service.client.post(new, json=_batch(_entry("a", [1]), _entry("b", [1, 2])))
    problem = assert_problem(reply, 422, "invalid")
    assert [error["field"] for error in problem["errors"]] == ["embeddings"]
    entries = [_entry("a", [1]), *(_entry(f"b{n}", [1, 2]) for n in range(3))]
    problem = assert_problem(await service.client.post(new, json=_batch(*entries)), 422, "invalid")
    assert [error["field"] for error in problem["errors"]] == ["embeddings[0].vector"]
    entries = [_entry("a", [True]), _entry("b", [1]), _entry("c", [1, 2])]
    problem = assert_problem(await service.client.post(new, json=_batch(*entries)), 422, "invalid")
    assert [error["field"] for error in problem["errors"]] == [
        "embeddings",
        "embeddings[0].vector[0]",
    ]
    assert_problem(await service.client.get("/models/undecided"), 404, "not-found")


async def test_a_body_over_the_limit_is_too_large(service: Service) -> None:
    """By its label before it is read, and without a label as it comes."""
    limit = service.settings.http.body_bytes_max

    async def stream() -> Any:
        for _ in range(limit // 65536 + 2):
            yield b" " * 65536

    for method, path in (("PUT", PUT), ("POST", SEARCH), ("POST", BATCH), ("POST", BUILDS)):
        reply = await service.client.request(method, path, content=b" " * (limit + 1))
        assert_problem(reply, 413, "too-large")
        assert_problem(
            await service.client.request(method, path, content=stream()), 413, "too-large"
        )
    await _still_works(service)


async def test_an_empty_model_has_nothing_to_build_from(client: httpx.AsyncClient) -> None:
    """A model version whose every embedding was deleted is a conflict."""
    path = path_of("m-empty", "embeddings", "a")
    assert (await client.put(path, json={"vector": [1, 2]})).status_code == 201
    assert (await client.delete(path)).status_code == 204
    assert_problem(await client.post(path_of("m-empty", "builds")), 409, "empty-model")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"target_recall": 2}, "target_recall"),
        ({"target_recall": "0.9"}, "target_recall"),
        ({"matrix_k": 0}, "matrix_k"),
        ({"matrix_k": 10**9}, "matrix_k"),
        ({"matrix_k": True}, "matrix_k"),
        ({"speed": 1}, "speed"),
    ],
)
async def test_a_build_that_does_not_hold_names_the_field(
    client: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    """It is a 422 with the field."""
    problem = assert_problem(await client.post(BUILDS, json=body), 422, "invalid")
    assert [error["field"] for error in problem["errors"]] == [field]


async def test_another_metric_is_a_conflict_and_an_unknown_one_invalid(
    client: httpx.AsyncClient,
) -> None:
    """The first write fixes it."""
    good = {"vector": _GOOD}
    reply = await client.put(path_of(MODEL, "embeddings", "bad") + "?metric=l2", json=good)
    assert_problem(reply, 409, "metric-conflict")
    for unknown in ("hamming", "null", ""):
        path = path_of(MODEL, "embeddings", "bad") + f"?metric={unknown}"
        problem = assert_problem(await client.put(path, json=good), 422, "invalid")
        assert [error["field"] for error in problem["errors"]] == ["metric"]


@pytest.mark.parametrize("path", ["/models/%FF", "/models/a%zz", "/models/%", "/models/a%C3"])
async def test_a_path_that_cannot_be_read_is_400(service: Service, path: str) -> None:
    """Bytes that are no UTF-8, and percent signs that escape nothing."""
    request = service.client.build_request("GET", "/models/x")
    request.url = httpx.URL(request.url, raw_path=path.encode())
    assert_problem(await service.client.send(request), 400, "unreadable")


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=x", "vectors=maybe", "limit=1&limit=0"]
)
async def test_a_list_takes_a_limit_within_bounds(client: httpx.AsyncClient, query: str) -> None:
    """Anything else is a 422."""
    reply = await client.get(f"/models/{MODEL}/embeddings?{query}")
    assert_problem(reply, 422, "invalid")


async def test_a_route_that_does_not_take_the_method_says_which_it_takes(
    client: httpx.AsyncClient,
) -> None:
    """It is a 405 with `Allow`, a problem detail as any other."""
    for method, path in (
        ("GET", SEARCH),
        ("POST", PUT),
        ("DELETE", "/models"),
        ("FOO", "/models"),
        ("POST", path_of(MODEL, "products", "plain", "neighbors")),
    ):
        reply = await client.request(method, path)
        assert_problem(reply, 405)
        assert reply.headers["allow"]
