"""Builds, model versions and the matrix over HTTP."""

from typing import Any

import httpx

from tests.api.conftest import MODEL, ROWS, Service
from tests.api.serving import assert_problem, path_of, vector


async def test_a_build_is_accepted_and_shown(service: Service) -> None:
    """202 with its place; the same request gives the same build, another is a conflict."""
    client, model = service.client, "m-builds"
    await client.put(path_of(model, "embeddings", "a"), json={"vector": [1, 2]})
    builds = path_of(model, "builds")
    reply = await client.post(builds, json={"matrix_k": 3})
    assert reply.status_code == 202
    build = reply.json()
    assert build["status"] == "queued"
    assert build["parameters"] == {
        "target_recall": 0.95,
        "matrix_k": 3,
        "deterministic": False,
        "force": False,
    }
    assert reply.headers["location"] == f"/builds/{build['build_id']}"
    assert (await client.post(builds, json={"matrix_k": 3})).json() == build
    assert_problem(await client.post(builds), 409, "build-conflict")
    assert (await client.get(reply.headers["location"])).json() == build
    shown = (await client.get(f"/models/{model}")).json()
    assert shown["open_build_id"] == build["build_id"]
    assert shown["current_build"] is None
    assert shown["loaded"] is None


async def test_history_is_newest_first_with_the_manifest(client: httpx.AsyncClient) -> None:
    """A published build tells what it made."""
    page = (await client.get(path_of(MODEL, "builds"))).json()
    assert page["next_cursor"] is None
    (build,) = page["items"]
    assert (build["status"], build["error"], build["attempt"]) == ("published", None, 1)
    assert build["manifest"]["counts"]["rows"] == ROWS
    assert (await client.get(f"/builds/{build['build_id']}")).json() == build


async def test_a_model_tells_its_build_and_what_is_loaded(client: httpx.AsyncClient) -> None:
    """Dimension, metric, counts, the current build, and what this process has in memory."""
    shown = (await client.get(f"/models/{MODEL}")).json()
    assert (shown["dimension"], shown["metric"]) == (8, "cosine")
    assert shown["current_build"]["rows"] == shown["loaded"]["rows"] == ROWS
    assert shown["current_build"]["build_id"] == shown["loaded"]["build_id"]


async def test_models_are_paged_by_name(client: httpx.AsyncClient) -> None:
    """Each of them once, in order."""
    await client.put(path_of("m-zz", "embeddings", "a"), json={"vector": vector(1).tolist()})
    names: list[str] = []
    parameters: dict[str, Any] = {"limit": 1}
    while True:
        page = (await client.get("/models", params=parameters)).json()
        names += [item["model_version"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        parameters["cursor"] = page["next_cursor"]
    assert {MODEL, "m-zz"} <= set(names)
    assert names == sorted(set(names))


async def test_the_matrix_can_be_fetched_without_a_token(client: httpx.AsyncClient) -> None:
    """Its URLs carry their own right, for five minutes; the files are what the manifest says."""
    snapshot = (await client.get(path_of(MODEL, "matrix"))).json()
    assert snapshot["expires_in_s"] == 300
    assert snapshot["manifest"]["matrix"]["k"] == 5
    async with httpx.AsyncClient() as anyone:
        for name, first in (("parquet", b"PAR1"), ("npz", b"PK")):
            file = snapshot["files"][name]
            data = (await anyone.get(file["url"])).content
            assert data.startswith(first)
            assert len(data) == file["bytes"]
