"""Query strings, on every route."""

import httpx
import pytest

from tests.api.conftest import MODEL
from tests.api.serving import assert_problem, path_of


@pytest.mark.parametrize("query", ["k=1&k=2", "filter={}&filter={}", "k=1&fields=a&fields="])
async def test_a_parameter_is_given_once(client: httpx.AsyncClient, query: str) -> None:
    """Of two filters one would be dropped without a word; on every route."""
    path = path_of(MODEL, "products", "plain", "neighbors")
    name = query.rsplit("&", maxsplit=1)[-1].partition("=")[0]
    for url in (f"{path}?{query}", f"/models?limit=1&{query}"):
        problem = assert_problem(await client.get(url), 422, "invalid")
        assert [error["field"] for error in problem["errors"]] == [name]
