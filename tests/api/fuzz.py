"""The long form of `test_schema`, by its name alone: `make fuzz`. FUZZ_SEED makes other cases."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from core.settings import Settings
from tests.api.fuzz_target import running_target
from tests.api.fuzzing import Effort, assert_all_well, explore
from tests.api.pool import Pool

LONG = Effort(positive=460, negative=20, stateful=250)
SPARE = 500
CASES_MIN = 10_000


@pytest.mark.timeout(7200)
@pytest.mark.filterwarnings("ignore:Generating overly large repr")
async def test_ten_thousand_requests(api_settings: Settings, pool: Pool, tmp_path: Path) -> None:
    """Every route: no server error, no undocumented answer, and half of the cases succeed."""
    seed = int(os.environ.get("FUZZ_SEED", "1"))
    async with running_target(api_settings, pool, tmp_path, spare=SPARE) as target:
        tally = await asyncio.to_thread(explore, target.known, LONG, seed=seed)
        sys.stdout.write("\n".join(["", *tally.lines(), ""]))
        assert_all_well(tally, target.log)
    assert tally.cases >= CASES_MIN
