import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from core.rates import parse_policies
from core.settings import Http, Settings
from deploy.aws import stacks
from deploy.doctor.host import check_clock, check_host
from deploy.doctor.report import percentile
from deploy.doctor.services import BUCKET_ACTIONS, check_rates
from deploy.doctor.tables import ACTIONS
from tests.aws_calls import LIST
from tests.templates import read_template

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


@pytest.mark.parametrize(
    ("rates", "status", "words"),
    [
        ((), "ok", "none are set"),
        (("caller:a=5/1", "*=1000/60"), "ok", "caller:a 5 in 1 s, * 1,000 in 60 s"),
        (("*=1000/60", "group:readers=5/1"), "warning", "group:readers never applies"),
        (("scope:k9/read=5/1", "scope:k9/read=6/1"), "warning", "scope:k9/read never applies"),
        (("readers=5/1",), "failed", "'readers=5/1'"),
    ],
)
def test_rates_are_told_and_those_that_never_apply(
    rates: tuple[str, ...], status: str, words: str
) -> None:
    """With what they give to whom, in the order in which they apply."""
    check = check_rates(Settings(http=Http(rates=rates)))
    assert (check.status, bool(check.advice)) == (status, status != "ok")
    assert words in check.detail


@pytest.mark.parametrize("template", ["service.yaml", "lambda.yaml"])
def test_templates_take_the_rates_that_an_api_reads(template: str) -> None:
    """By the pattern of their parameter, so that a deployment fails before its tasks do."""
    text = (stacks.TEMPLATES / template).read_text(encoding="utf-8")
    found = re.search(r"\n  Rates:\n(?:    .*\n)*?    AllowedPattern: '(.*)'\n", text)
    assert found is not None
    for rates in ("", "*=5/1", "caller:a-b=5/1,group:readers=100/60,scope:k9/read=50/1,*=9/60"):
        assert re.fullmatch(found[1], rates)
        parse_policies(tuple(filter(None, rates.split(","))))
    for wrong in ("readers=5/1", "*=5", "*=5/1,", ",*=5/1", "*=5/1 ,*=5/1", "group:=5/1"):
        assert not re.fullmatch(found[1], wrong)


def test_the_firewall_takes_no_limit_that_waf_refuses() -> None:
    """A deployment fails by its parameter then, and not in the middle."""
    parameter = read_template("service")["Parameters"]["RequestsPerMinute"]
    for limit in ("0", "10", "99", parameter["Default"], "1000000"):
        assert re.fullmatch(parameter["AllowedPattern"], limit)
    for wrong in ("", "1", "9", "05", "-10", "10.5", "1000001"):
        assert not re.fullmatch(parameter["AllowedPattern"], wrong)


def test_a_directory_that_may_not_be_entered_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that cannot be used, beside the other checks."""

    def exists(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", exists)
    checks = {check.name: check for check in check_host(Settings())}
    assert checks["cache directory"].status == checks["work directory"].status == "failed"
    assert "Permission denied" in checks["cache directory"].detail
    assert "memory" in checks


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
