"""An API with a proxy before each of its dependencies."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.settings import Settings
from tests.faults.proxied_api import ProxiedApi, open_proxied_api


@pytest.fixture
async def site(stack_settings: Settings, tmp_path: Path) -> AsyncIterator[ProxiedApi]:
    """A published index, and every dependency behind a proxy that passes all through."""
    async with open_proxied_api(stack_settings, tmp_path) as opened:
        yield opened
