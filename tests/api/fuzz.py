"""The long forms of `test_schema` and `test_generated`, by name alone: `make fuzz`.

FUZZ_SEED makes other cases.
"""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from core.settings import Settings
from tests.api.fuzz_target import running_target
from tests.api.fuzzing import Effort, assert_all_well, explore
from tests.api.pool import Pool
from tests.api.schemathesis_cli import run_schemathesis

LONG = Effort(positive=460, negative=20, stateful=250)
SPARE = 500
CASES_MIN = 10_000
CLI_EXAMPLES = 50
SEED = int(os.environ.get("FUZZ_SEED", "1"))


@pytest.mark.timeout(7200)
@pytest.mark.filterwarnings("ignore:Generating overly large repr")
async def test_ten_thousand_requests(api_settings: Settings, pool: Pool, tmp_path: Path) -> None:
    """Every route: no server error, no undocumented answer, and half of what holds succeeds."""
    async with running_target(api_settings, pool, tmp_path, spare=SPARE) as target:
        tally = await asyncio.to_thread(explore, target.known, LONG, seed=SEED)
        sys.stdout.write("\n".join(["", *tally.lines(), ""]))
        assert_all_well(tally, target.log)
    assert tally.cases >= CASES_MIN


@pytest.mark.timeout(7200)
async def test_schemathesis_as_it_comes(api_settings: Settings, pool: Pool, tmp_path: Path) -> None:
    """`schemathesis run` without a plugin: no failure, and no error but that it has no msgpack."""
    async with running_target(api_settings, pool, tmp_path, spare=SPARE) as target:
        url, token = target.known.url, target.known.operator
        found = await asyncio.to_thread(
            run_schemathesis, url, token, tmp_path, examples=CLI_EXAMPLES, seed=SEED
        )
        sys.stdout.write(found.output)
    assert not found.failures
    assert found.errors == ()
