"""The short form of `python -m tests.faults.deletion`."""

import pytest

from tests.faults.deletion import run


@pytest.mark.timeout(300)
async def test_deleting_a_user_destroys_nothing_written_since() -> None:
    """With three workers, one of which is killed, every acknowledged report and key is there."""
    wrong = await run(
        4, at_once=4, kills=1, watched_s=3.0, K9_DELETION_SETTLE_S="2", K9_RECONCILE_S="1"
    )
    assert wrong == []
