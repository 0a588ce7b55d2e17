"""Imports over HTTP: requested, listed, watched, cancelled; what a worker makes of them is its."""

import hashlib
import json
from typing import Any

import httpx
import pytest

from core.models import BadRow, ImportProgress
from core.names import imports_prefix
from core.repositories.imports import ImportState
from tests.api.conftest import Service
from tests.api.serving import assert_problem, client_of, path_of
from tests.api.test_build_events import Stream, quick

MISSING = "environments/x/imports/a"


async def there(service: Service, name: str = "file") -> str:
    """The key of an object that can be imported."""
    key = imports_prefix(service.settings.environment) + name
    await service.resources.objects.put(key, b'{"product_id": "a", "vector": [1, 2]}\n')
    return key


async def requested(service: Service, model: str, **more: Any) -> httpx.Response:
    """The answer to a request for an import."""
    body = {"key": await there(service), **more}
    return await service.client.post(path_of(model, "imports"), json=body)


async def test_an_import_is_accepted_and_shown(service: Service) -> None:
    """202 with its place, also before its model version exists; listed, cancelled once."""
    client, model = service.client, "m-imports"
    assert_problem(await client.get(path_of(model, "imports")), 404, "not-found")
    reply = await requested(service, model, attributes=["b", "a", "b"], id_column="id")
    assert reply.status_code == 202, reply.text
    shown = reply.json()
    assert shown["upload"] is None
    assert (shown["status"], shown["progress"]["stage"]) == ("queued", "queued")
    assert shown["parameters"] == {
        "key": await there(service),
        "metric": None,
        "id_column": "id",
        "vector_column": None,
        "attributes": ["b", "a"],
    }
    place = reply.headers["location"]
    assert place == f"/imports/{shown['import_id']}"
    one = (await client.get(place)).json()
    assert (one["bad_rows"], one["bad_rows_file"]) == ([], None)
    second = (await requested(service, model)).json()
    page = (await client.get(path_of(model, "imports"), params={"limit": 1})).json()
    assert [each["import_id"] for each in page["items"]] == [second["import_id"]]
    following = {"limit": 1, "cursor": page["next_cursor"]}
    page = (await client.get(path_of(model, "imports"), params=following)).json()
    assert [each["import_id"] for each in page["items"]] == [shown["import_id"]]
    cancelled = await client.delete(place)
    assert (cancelled.status_code, cancelled.json()["status"]) == (202, "cancelled")
    assert_problem(await client.delete(place), 409, "import-ended")


async def test_a_key_makes_one_import(service: Service) -> None:
    """A retry is answered as before."""
    key = await there(service)
    send = [
        await service.client.post(
            path_of("m-imports-key", "imports"),
            json={"key": key},
            headers={"idempotency-key": "import-once"},
        )
        for _ in range(2)
    ]
    assert [reply.status_code for reply in send] == [202, 202]
    assert send[0].json() == send[1].json()


async def test_an_upload_is_signed_for_its_length_and_checksum(service: Service) -> None:
    """Under a name of the server's; the address goes to who may write alone."""
    data = b'{"product_id": "a", "vector": [1, 2]}\n'
    body = {"upload": True, "content_length": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    reply = await service.client.post(path_of("m-uploads", "imports"), json=body)
    assert reply.status_code == 202, reply.text
    shown = reply.json()
    assert shown["status"] == "waiting"
    uploads = f"{imports_prefix(service.settings.environment)}uploads/"
    assert shown["parameters"]["key"] == uploads + shown["import_id"]
    upload = shown["upload"]
    assert upload["method"] == "PUT"
    assert 890 < upload["expires_in_s"] <= 900
    signed = httpx.URL(upload["url"]).params["X-Amz-SignedHeaders"].split(";")
    assert {"content-length", "x-amz-checksum-sha256"} <= set(signed)
    async with httpx.AsyncClient() as anyone:
        put = await anyone.put(upload["url"], content=data, headers=upload["headers"])
        assert put.status_code == 200, put.text
    one = (await service.client.get(f"/imports/{shown['import_id']}")).json()
    assert "upload" not in one


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "key"),
        ({"key": ""}, "key"),
        ({"key": "a"}, "key"),
        ({"key": MISSING}, "key"),
        ({"key": "{prefix}"}, "key"),
        ({"key": "{prefix}../other/imports/a"}, "key"),
        ({"key": "{prefix}a//b"}, "key"),
        ({"key": "{prefix}a\u0000"}, "key"),
        ({"key": "{prefix}" + "a" * 1024}, "key"),
        ({"key": "{prefix}missing"}, "key"),
        ({"key": "{prefix}file", "attributes": ["a b"]}, "attributes[0]"),
        ({"key": "{prefix}file", "attributes": [f"a{n}" for n in range(65)]}, "attributes"),
        ({"key": "{prefix}file", "upload": True}, "key"),
        ({"key": "{prefix}file", "sha256": "0" * 64}, "sha256"),
        ({"key": "{prefix}file", "id_column": ""}, "id_column"),
        ({"key": "{prefix}file", "id_column": "a", "vector_column": "a"}, "vector_column"),
        ({"key": "{prefix}file", "id_column": "a", "attributes": ["b", "a"]}, "attributes[1]"),
        ({"key": "{prefix}file", "more": 1}, "more"),
        ({"upload": True}, "content_length"),
        ({"upload": True, "content_length": 1, "sha256": "zz"}, "sha256"),
        ({"upload": True, "content_length": 5 * 1024**3, "sha256": "0" * 64}, "content_length"),
    ],
)
async def test_what_cannot_be_imported_is_refused(
    service: Service, body: dict[str, Any], field: str
) -> None:
    """422 by the field; a key of another environment is not even looked for."""
    await there(service)
    prefix = imports_prefix(service.settings.environment)
    if "key" in body:
        body = {**body, "key": body["key"].replace("{prefix}", prefix)}
    reply = await service.client.post(path_of("m-refused", "imports"), json=body)
    problem = assert_problem(reply, 422, "invalid")
    assert field in {each["field"] for each in problem["errors"]}


async def test_rights_and_conflicts(service: Service) -> None:
    """Readers look, operators write; another metric and one import too many are conflicts."""
    client, model = service.client, "m-imports-409"
    await client.put(path_of(model, "embeddings", "a"), json={"vector": [1, 2]})
    assert_problem(await requested(service, model, metric="l2"), 409, "metric-conflict")
    most = service.settings.imports.imports_open_max
    places = [(await requested(service, model)).headers["location"] for _ in range(most)]
    assert_problem(await requested(service, model), 409, "too-many-imports")
    async with client_of(service.app, service.pool.token("readers")) as reader:
        assert (await reader.get(places[0])).status_code == 200
        assert (await reader.get(path_of(model, "imports"))).status_code == 200
        assert_problem(await reader.delete(places[0]), 403, "forbidden")
        asked = await reader.post(path_of(model, "imports"), json={"key": await there(service)})
        assert_problem(asked, 403, "forbidden")
    async with client_of(service.app, service.pool.token()) as caller:
        assert_problem(await caller.get(places[0]), 403, "forbidden")
    for unknown in ("/imports/nothing", f"/imports/{model}%23open", "/imports/" + "a" * 65):
        assert_problem(await client.get(unknown), 404, "not-found")
    for place in places:
        await client.delete(place)


async def test_events_tell_progress_and_bad_rows(service: Service) -> None:
    """Each change, and the end, with what GET has: the bad rows too, but not the URL of all."""
    imports = service.resources.imports
    shown = (await requested(service, "m-import-events")).json()
    async with quick(service) as app:
        stream = Stream(app, shown["import_id"], service.pool.token("readers"), "imports")
        first = await stream.chunk()
        assert first is not None
        assert first.startswith(b"event: import\ndata: ")
        claimed = await imports.claim(shown["import_id"], 0)
        state = ImportState(ImportProgress("store", 2, 2, "rows"), 2, 1, 1)
        await imports.write_bad_rows(claimed, [BadRow(2, "b", "vector is null")])
        await imports.beat(claimed, state)
        running: dict[str, Any] = {"rows_bad": 0}
        while not running["rows_bad"]:
            chunk = await stream.chunk()
            assert chunk is not None
            if chunk.startswith(b"event"):
                running = json.loads(chunk.removeprefix(b"event: import\ndata: "))
        assert (running["status"], running["bad_rows"]) == ("running", [])
        key = imports_prefix(service.settings.environment) + "report"
        await service.resources.objects.put(key, b"{}\n")
        await imports.end(claimed, "completed", state=state, bad_rows_key=key)
        last = first
        while (chunk := await stream.chunk()) is not None:
            last = chunk if chunk.startswith(b"event") else last
    event = json.loads(last.removeprefix(b"event: import\ndata: "))
    assert (event["status"], event["rows_stored"], event["rows_bad"]) == ("completed", 1, 1)
    assert event["bad_rows"] == [{"number": 2, "product_id": "b", "reason": "vector is null"}]
    one = (await service.client.get(f"/imports/{shown['import_id']}")).json()
    file = one.pop("bad_rows_file")
    assert event.pop("bad_rows_file") is None
    assert one == event
    async with httpx.AsyncClient() as anyone:
        assert (await anyone.get(file["url"])).content == b"{}\n"
