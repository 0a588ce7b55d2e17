"""The queries of the dashboard, and the alerts of the rules."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

_DIRECTORY: Final = Path(__file__).parents[2] / "deploy/observability"
PROMETHEUS: Final = _DIRECTORY / "prometheus"
RULES: Final = PROMETHEUS / "rules.yml"
RULE_TESTS: Final = PROMETHEUS / "rules_test.yml"
DASHBOARD: Final = _DIRECTORY / "grafana/dashboards/k9.json"
RATE_INTERVAL: Final = "$__rate_interval"
"""Grafana's variable: at least four intervals between scrapes."""

MAY_BE_EMPTY: Final = {
    'status=~"5.."': "no request of the load fails: a route has a series of a status once it occurs"
}
"""Parts of queries that find nothing in a run without faults, and why. That the alerts find such an
event is what the unit tests of the rules show."""
MAY_BE_ACTIVE: Final = {
    "K9AwsSlow": "the emulator answers one request at a time, on the processor of all others",
    "K9SearchSlow": "the load takes the same processor",
}
"""Alerts that a healthy stack may have, and why."""
_THRESHOLD: Final = re.compile(r"\s(?:[<>]|==)\s[\w.]+")


@dataclass(frozen=True)
class Panel:
    """One panel of the dashboard."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    """Expression and legend, in Grafana's form."""


def panels() -> list[Panel]:
    """Those of the dashboard that have queries."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return [
        Panel(
            each["title"],
            each["fieldConfig"]["defaults"]["unit"],
            tuple((target["expr"], target["legendFormat"]) for target in each["targets"]),
        )
        for each in dashboard["panels"]
        if each["type"] != "row"
    ]


def annotations() -> list[str]:
    """The queries of the dashboard's annotations."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return [each["expr"] for each in dashboard["annotations"]["list"]]


def alerts() -> dict[str, dict[str, Any]]:
    """The rules, by the alert's name."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def measured(expression: str) -> str:
    """What an alert compares: its expression without the thresholds."""
    return _THRESHOLD.sub("", expression)


def reason_to_be_empty(expression: str) -> str | None:
    """Why a query may find nothing; None where it must find something."""
    return next((why for part, why in MAY_BE_EMPTY.items() if part in expression), None)
