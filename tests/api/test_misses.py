"""Why a product is not in an answer, where that is hard to tell."""

from typing import Any

import msgspec
import numpy as np
import pytest

from core.models import Metric
from core.vectors.arrays import Floats
from core.vectors.parameters import IndexLimits
from tests.api.conftest import Service
from tests.api.serving import build_here, caught_up, eventually, path_of
from worker.building.builder import VersionBuilder

Json = dict[str, Any]


async def built(service: Service, model: str, rows: Floats, metric: Metric, **asked: Any) -> None:
    """A model version of these rows, `p0` and so on, whose index is in use."""
    path, entries = path_of(model, "embeddings:batch"), _entries(rows)
    stored = await service.client.post(
        path, json={"embeddings": entries}, params={"metric": metric}
    )
    assert stored.status_code == 200, stored.text
    requested = await service.client.post(path_of(model, "builds"), json=asked)
    await build_here(service.resources, requested.json()["build_id"])
    await eventually(service.client, model)
    await caught_up(service.client, model, "p0")


def _entries(rows: Floats, first: int = 0) -> list[Json]:
    return [
        {"product_id": f"p{number}", "vector": row.tolist()}
        for number, row in enumerate(rows, first)
    ]


async def answer(service: Service, model: str, route: str, **asked: Any) -> Json:
    """That to a search, or to a miss."""
    reply = await service.client.post(path_of(model, route), json=asked)
    assert reply.status_code == 200, reply.text
    found: Json = reply.json()
    return found


async def test_what_the_index_misses_is_told_apart(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph walked as narrowly as a low target allows, over rows that have no neighbourhoods."""
    of_settings = VersionBuilder._spec  # noqa: SLF001 - its limits are no settings

    def narrow(*arguments: Any, **options: Any) -> Any:
        limits = IndexLimits(exact_numbers_max=0, held_out_min=100)
        return msgspec.structs.replace(of_settings(*arguments, **options), index_limits=limits)

    monkeypatch.setattr(VersionBuilder, "_spec", narrow)
    random, model = np.random.default_rng(5), "m-missed"
    rows = random.standard_normal((600, 64)).astype(np.float32)
    await built(service, model, rows, "cosine", target_recall=0.5, matrix_k=1)
    seen: set[str] = set()
    for query in random.standard_normal((12, 64)).astype(np.float32):
        asked = {"vector": query.tolist(), "k": 10}
        found = await answer(service, model, "search", **asked)
        assert found["index"]["exact"] is False
        exact = await answer(service, model, "search", **asked, exact=True)
        names = {hit["product_id"] for hit in found["neighbors"]}
        for rank, hit in enumerate(exact["neighbors"], 1):
            expected = hit["product_id"]
            told = await answer(
                service, model, "explain-miss", **asked, expected_product_id=expected
            )
            assert told["reason"] == ("found" if expected in names else "missed_by_index")
            assert (told["rank"], told["score"]) == (rank, hit["score"])
            seen.add(told["reason"])
    assert seen == {"found", "missed_by_index"}


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
async def test_a_rank_is_exact_where_scores_are_rounded(service: Service, metric: Metric) -> None:
    """Long vectors that hardly differ, in the index and changed since: float32 has few digits."""
    random, model = np.random.default_rng(7), f"m-rounded-{metric}"
    rows = (3000 + random.standard_normal((16, 48)) / 100).astype(np.float32)
    await built(service, model, rows[:12], metric, matrix_k=1)
    path = path_of(model, "embeddings:batch")
    reply = await service.client.post(path, json={"embeddings": _entries(rows[12:], 12)})
    asked = {"vector": rows[3].tolist(), "k": 16}
    token = reply.headers["x-watermark"]
    exact = await answer(service, model, "search", **asked, exact=True, min_watermark=token)
    assert len(exact["neighbors"]) == len(rows)
    for rank, hit in enumerate(exact["neighbors"], 1):
        told = await answer(
            service, model, "explain-miss", **asked, expected_product_id=hit["product_id"]
        )
        assert (told["reason"], told["rank"], told["score"]) == ("found", rank, hit["score"])
