"""`k9 rebuild` against processes of the API and the worker, over real HTTP."""

from pathlib import Path

import pytest

from tests.api.conftest import Service
from tests.api.serving import path_of, vector
from tests.api.test_build_commands import k9, machine

MODEL = "m-rebuild"


async def current(service: Service, model: str = MODEL) -> tuple[str, bool, int]:
    """The current build of a model version, whether it is pinned, and its matrix's k."""
    known = await service.resources.models.get_model(model)
    build = await service.resources.builds.get_build(known.current_build_id or "")
    return build.build_id, known.pinned, build.parameters.matrix_k


@pytest.mark.timeout(240)
async def test_builds_are_made_again(service: Service, tmp_path: Path) -> None:
    """As they were asked for, pinned as they were; rows that changed are told from other bytes."""
    client = service.client
    entries = [{"product_id": f"p{n}", "vector": vector(n).tolist()} for n in range(40)]
    for model, rows in ((MODEL, entries), ("m-emptied", entries[:1])):
        await client.post(f"/models/{model}/embeddings:batch", json={"embeddings": rows})
    async with machine(service, tmp_path) as environ:
        status, out, error = await k9(environ, "rebuild", MODEL)
        assert (status, out, error.count("\n")) == (1, "", 1)
        assert f"{MODEL}: it has no published build" in error
        status, _, error = await k9(environ, "rebuild", "nothing")
        assert (status, error.count("\n")) == (1, 1)
        assert "404" in error

        await k9(environ, "build", MODEL, "--matrix-k", "5")
        await k9(environ, "build", "m-emptied")
        first = (await current(service))[0]
        await client.delete(path_of("m-emptied", "embeddings", "p0"))
        status, out, error = await k9(environ, "rebuild", MODEL, "m-emptied")
        assert (status, error) == (0, "")
        assert f"{MODEL}: all 7 files have the same SHA-256 as before" in out
        assert f"in place of {first}, 40 rows" in out
        assert "m-emptied: it has no rows any more" in out
        second, pinned, matrix_k = await current(service)
        assert (second != first, pinned, matrix_k) == (True, False, 5)

        await client.post(path_of(MODEL, "promote"), json={"build_id": first})
        await client.put(path_of(MODEL, "embeddings", "p7"), json={"vector": vector(77).tolist()})
        status, out, error = await k9(environ, "rebuild", MODEL)
        assert (status, error) == (0, "")
        assert "same   ids " in out
        assert "other  vectors.npy " in out
        assert "rows have changed since then" in out
        third, pinned, matrix_k = await current(service)
        assert (third not in {first, second}, pinned, matrix_k) == (True, True, 5)

        asked = await client.post(path_of(MODEL, "builds"), json={"matrix_k": 6})
        assert asked.status_code == 202
        status, out, error = await k9(environ, "rebuild", MODEL)
        assert (status, error) == (0, "")
        assert f"in place of {asked.json()['build_id']}" in out
        assert (await current(service))[2] == 6
