"""The short forms of `python -m tests.faults.wiped` and `python -m tests.faults.corrupted`."""

from collections.abc import AsyncIterator

import pytest

from tests.faults import corrupted, wiped
from tests.faults.machine import Machine, open_machine
from tests.faults.questions import Questions

ROWS, DIMENSION = 1100, 1920
"""The least of which a graph is made."""

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
async def machine() -> AsyncIterator[Machine]:
    """One for both."""
    async with open_machine() as opened:
        yield opened


async def test_what_is_lost_is_made_again(machine: Machine) -> None:
    """Without any object, cache or queue, `k9 rebuild` brings back the same answers and files."""
    questions = Questions(wiped.MODEL, ROWS, DIMENSION, each=10)
    assert await wiped.run(machine, questions) == []


async def test_what_is_damaged_never_answers(machine: Machine) -> None:
    """It is refused by checksum; what held before answers on, and what holds again is taken."""
    questions = Questions(corrupted.MODEL, ROWS, DIMENSION, each=10)
    assert await corrupted.run(machine, questions, short=True) == []
