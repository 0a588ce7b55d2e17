from datetime import UTC, datetime

import pytest

from deploy.doctor.host import check_clock
from deploy.doctor.report import percentile
from deploy.doctor.services import BUCKET_ACTIONS
from deploy.doctor.tables import ACTIONS
from tests.aws_calls import LIST

_SERVER = datetime(2025, 9, 30, 8, 0, 0, tzinfo=UTC)
_UNIX = _SERVER.timestamp()


@pytest.mark.parametrize(
    ("offset_s", "status"),
    [
        (0.0, "ok"),
        (0.99, "ok"),
        (-1.5, "ok"),
        (4.0, "warning"),
        (-29.0, "warning"),
        (33.0, "failed"),
    ],
)
def test_a_clock_is_compared_within_what_a_date_can_tell(offset_s: float, status: str) -> None:
    """A Date has whole seconds, and the answer was on its way: neither counts against a clock."""
    check = check_clock(_UNIX + offset_s, _UNIX + offset_s + 0.1, _SERVER)
    assert check.status == status
    assert bool(check.advice) == (status != "ok")


def test_a_slow_answer_says_little_of_the_clock() -> None:
    """It may have been written at its beginning or its end; without a date there is no check."""
    assert check_clock(_UNIX - 20, _UNIX + 1, _SERVER).status == "ok"
    assert check_clock(_UNIX, _UNIX, None).status == "skipped"


def test_percentiles_are_measured_values() -> None:
    """By nearest rank: of a hundred, the 99th; of one, that one."""
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, percent) for percent in (50, 99, 100)] == [50, 99, 100]
    assert percentile([7.0], 50) == percentile([7.0], 99) == 7
    assert percentile([1.0, 2.0, 3.0], 50) == 2


def test_what_is_examined_is_what_the_processes_call() -> None:
    """Action by action, as a run of all tests recorded them, which the roles are held against."""
    recorded: dict[str, set[str]] = {"api": set(), "worker": set()}
    for line in LIST.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            role, action, resource = line.split()
            recorded[role].add(f"{action} {resource}")
    for process, by_table in ACTIONS.items():
        examined = {f"{action} bucket" for action in BUCKET_ACTIONS[process]}
        for table, actions in by_table.items():
            for action in actions:
                name, slash, index = action.partition("/")
                examined.add(f"dynamodb:{name} {table}{slash}{index}")
        assert examined == recorded[process]
