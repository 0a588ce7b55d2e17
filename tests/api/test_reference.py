"""The reference: complete, valid, and made of nothing from elsewhere."""

import re
from typing import Any

import pytest
from openapi_spec_validator import validate

from api.admission.quotas import BodyLimits
from api.openapi.routes import ASSETS
from tests.api.conftest import Service
from tests.api.serving import assert_problem, client_of, path_of

WITHOUT = {"HEAD", "OPTIONS"}


async def _document(service: Service) -> dict[str, Any]:
    async with client_of(service.app) as client:
        reply = await client.get("/openapi.json")
    assert reply.headers["content-type"] == "application/json"
    document: dict[str, Any] = reply.json()
    return document


async def test_the_document_is_valid_openapi(service: Service) -> None:
    """By the specification's own schema."""
    document = await _document(service)
    validate(document)
    assert (document["info"]["title"], document["info"]["version"]) == ("K9", "1.0.0")


async def test_every_route_is_described_and_no_other(service: Service) -> None:
    """The document's paths are the router's, less the reference itself."""
    routed = {
        (route.path_format, method.lower())
        for route in service.app.litestar.routes
        for method in getattr(route, "methods", ())
        if method not in WITHOUT
    } - {("/docs", "get"), ("/docs/{name}", "get"), ("/openapi.json", "get")}
    document = await _document(service)
    described = {(path, m) for path, methods in document["paths"].items() for m in methods}
    assert described == routed


async def test_limits_stand_in_it(service: Service) -> None:
    """Those of the settings, where a client would look for them."""
    document = await _document(service)
    paths = document["paths"]
    body = paths["/models/{model_version}/search"]["post"]["requestBody"]["content"]
    search: dict[str, Any] = {}
    for each in body["application/json"]["schema"]["oneOf"]:
        search |= each["properties"]
    assert (search["k"]["maximum"], search["k"]["default"]) == (1000, 10)
    assert search["vectors"]["maxItems"] == 256
    assert search["vector"]["maxItems"] == 4096
    batch = paths["/models/{model_version}/embeddings:batch"]["post"]["requestBody"]["content"]
    assert batch["application/json"]["schema"]["properties"]["embeddings"]["maxItems"] == 1000
    assert str(BodyLimits(service.settings).batch) in document["info"]["description"]


async def test_the_largest_numbers_of_a_vector_are_described(service: Service) -> None:
    """Under cosine any float32 is taken, beyond the norm under ip, and given back."""
    document = await _document(service)
    put = document["paths"]["/models/{model_version}/embeddings/{product_id}"]["put"]
    body = put["requestBody"]["content"]["application/json"]["schema"]["properties"]["vector"]
    most, least = body["items"]["maximum"], body["items"]["minimum"]
    assert 3.4e38 < most == -least
    path = path_of("m-largest", "embeddings", "a")
    sent = {"vector": [most, least, 0.0]}
    assert (await service.client.put(path, json=sent)).status_code == 201
    assert (await service.client.get(path)).json()["vector"] == pytest.approx(sent["vector"])
    item = document["components"]["schemas"]["EmbeddingItem"]["properties"]["vector"]["anyOf"][0]
    assert item == {"type": "array", "items": {"type": "number"}}


async def test_security_and_problems_are_described(service: Service) -> None:
    """Each route that takes a token says so, and which errors it may answer with."""
    document = await _document(service)
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert bool(operation["security"]) != path.startswith("/health")
            if operation["security"]:
                assert {"401", "403", "429", "500", "503"} <= set(operation["responses"])
            if "requestBody" in operation:
                assert {"400", "413", "415", "422"} <= set(operation["responses"])
            assert operation["summary"]
            assert operation["description"]
    for name in ("TooManyRequests", "ServiceUnavailable"):
        assert "Retry-After" in document["components"]["responses"][name]["headers"]
    assert "gzip or zstd" in document["info"]["description"]


async def test_the_page_loads_nothing_from_elsewhere(service: Service) -> None:
    """Its files are served here, its policy forbids the rest, and no script stands in it."""
    async with client_of(service.app) as client:
        reply = await client.get("/docs")
        assert reply.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'; script-src 'self';" in reply.headers["content-security-policy"]
        assert "<script>" not in reply.text
        loaded = re.findall(r"""(?:src|href)=["']([^"']*)["']""", reply.text)
        assert len(loaded) == len(ASSETS)
        for path in loaded:
            assert path.startswith("/docs/")
            file = await client.get(path)
            assert file.status_code == 200
            assert file.headers["content-type"].startswith(ASSETS[path.removeprefix("/docs/")])
            assert file.content
        assert_problem(await client.get("/docs/swagger-ui-bundle.js.map"), 404)
        assert_problem(await client.get("/docs/..%2F__init__.py"), 404)


async def test_the_examples_are_good_requests(service: Service) -> None:
    """An example that would be refused teaches nothing."""
    document = await _document(service)
    tried = 0
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if "requestBody" not in operation:
                continue
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            filled = path.replace("{model_version}", "m-examples").replace("{product_id}", "a")
            reply = await service.client.request(method, filled, json=schema["example"])
            assert reply.status_code in {200, 201, 202, 404, 409}, reply.text
            tried += 1
    assert tried == 13
