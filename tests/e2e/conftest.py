"""Tables of a test's own, without Redis."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from core.resources import Resources, open_resources
from core.settings import Settings
from tests.e2e.commands import NO_REDIS
from tests.emulators import create_tables, settings_for


@pytest.fixture
async def resources(emulator: Settings) -> AsyncIterator[Resources]:
    """Tables of a test's own, on each emulator, and no Redis: the tables are the truth."""
    made = await create_tables(settings_for(emulator.aws.endpoint_url or ""))
    nowhere = msgspec.structs.replace(made, redis_url=NO_REDIS)
    async with open_resources(nowhere) as opened:
        yield opened


@pytest.fixture
async def one(ministack: str) -> AsyncIterator[Resources]:
    """The same on one emulator, for what does not depend on it."""
    made = await create_tables(settings_for(ministack))
    nowhere = msgspec.structs.replace(made, redis_url=NO_REDIS)
    async with open_resources(nowhere) as opened:
        yield opened
