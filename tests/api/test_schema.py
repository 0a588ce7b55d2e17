"""schemathesis over the whole OpenAPI document, in short; `make fuzz` is the long form."""

import asyncio
from pathlib import Path

import httpx
import pytest

from core.settings import Settings
from tests.api.fuzz_target import running_target
from tests.api.fuzzing import Effort, assert_all_well, explore
from tests.api.pool import Pool

SHORT = Effort(positive=2, negative=1, stateful=2, coverage=False)
SPARE = 12


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:Generating overly large repr")
# The jitter of the application in the thread beside it, which Hypothesis takes for a strategy's.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
async def test_the_service_does_what_the_document_says(
    api_settings: Settings, pool: Pool, tmp_path: Path
) -> None:
    """Every route: no server error, no undocumented answer, and half of what holds succeeds."""
    async with running_target(api_settings, pool, tmp_path, spare=SPARE) as target:
        tally = await asyncio.to_thread(explore, target.known, SHORT, seed=1)
        assert_all_well(tally, target.log)


async def test_allow_names_every_method_of_a_path(client: httpx.AsyncClient) -> None:
    """In the answer to OPTIONS, and in a 405."""
    for path, methods in {
        "/reports": {"GET", "OPTIONS", "POST"},
        "/users/me": {"DELETE", "GET", "OPTIONS", "PATCH"},
    }.items():
        for method, status in (("OPTIONS", 204), ("PUT", 405)):
            reply = await client.request(method, path)
            assert reply.status_code == status
            assert set(reply.headers["allow"].split(", ")) == methods
