"""Settings, clients and a model version for each test of the worker."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from core.resources import Resources, open_resources
from core.settings import Settings


@pytest.fixture
def settings(stack_settings: Settings, tmp_path: Path) -> Settings:
    """The stack's settings, with directories of this test's own."""
    return msgspec.structs.replace(
        stack_settings,
        # A busy machine stalls for seconds, and no reconciler makes good here what Redis missed.
        redis_timeout_s=20.0,
        hint_timeout_s=20.0,
        building=msgspec.structs.replace(stack_settings.building, work_dir=tmp_path / "work"),
        serving=msgspec.structs.replace(stack_settings.serving, cache_dir=tmp_path / "cache"),
    )


@pytest.fixture
async def resources(settings: Settings) -> AsyncIterator[Resources]:
    """Opened resources."""
    async with open_resources(settings) as opened:
        yield opened


@pytest.fixture
def model_version() -> str:
    """A model version of this test's own."""
    return f"w-{uuid4().hex[:12]}"
