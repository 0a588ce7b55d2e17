"""The short form of `python -m tests.faults.storm`."""

import pytest

from tests.faults.storm import run


@pytest.mark.timeout(300)
async def test_builds_outlive_kills() -> None:
    """With workers, children, Valkey and the API killed at random, every build is published."""
    assert await run(builds=10, models=4, kills=5, seed=3, every_s=0.6) == []
