"""The page of metrics, the rules and the dashboard name what the code has."""

import re
import shutil
import subprocess

import pytest
import yaml

from tests.observability.page import PAGE, defined, rows, table_of
from tests.observability.queries import PROMETHEUS, RULE_TESTS, alerts, annotations, panels


def test_the_page_lists_every_metric_as_it_is() -> None:
    """Name, type, labels and meaning; `make metrics-page` writes the table anew."""
    assert table_of(PAGE.read_text(encoding="utf-8")) == "\n".join(rows())


def test_every_metric_has_a_meaning_and_bounded_labels() -> None:
    """A sentence each; no label is an id, or what a caller may choose."""
    text = PAGE.read_text(encoding="utf-8")
    for name, metric in defined().items():
        assert len(metric._documentation) > 10, name  # noqa: SLF001
        assert metric._documentation.endswith("."), name  # noqa: SLF001
        for label in metric._labelnames:  # noqa: SLF001
            assert f"`{label}`" in text.partition("## All metrics")[0], (name, label)


def test_rules_and_dashboard_ask_for_metrics_that_there_are() -> None:
    """Each name in a query is one that the code defines, or that every process has."""
    queries = [rule["expr"] for rule in alerts().values()] + annotations()
    queries += [query for panel in panels() for query, _ in panel.queries]
    known = {
        name + end
        for name, metric in defined().items()
        for end in (("_bucket", "_count", "_sum") if metric._type == "histogram" else ("",))  # noqa: SLF001
    }
    asked = {name for query in queries for name in re.findall(r"\bk9_\w+", query)}
    assert asked <= known, asked - known


def test_the_dashboard_shows_every_metric_but_those_of_faults() -> None:
    """A metric that no panel and no alert has is not looked at by anybody."""
    queries = " ".join(query for panel in panels() for query, _ in panel.queries)
    queries += " ".join(rule["expr"] for rule in alerts().values())
    unseen = {name for name in defined() if name not in queries}
    assert unseen == {
        "k9_builds_reconciled_total",
        "k9_dynamodb_unprocessed_items_total",
        "k9_event_loop_delay_seconds",
        "k9_hints_begun_total",
        "k9_http_connections_ended_total",
        "k9_http_malformed_total",
        "k9_loaded_rows",
    }


def test_every_alert_has_its_section_in_the_runbook_and_its_unit_tests() -> None:
    """A heading that its address names; a case in which it fires, and one in which it is quiet."""
    runbook = (PAGE.parent / "runbook.md").read_text(encoding="utf-8")
    headings = {line[3:] for line in runbook.splitlines() if line.startswith("## ")}
    tested = yaml.safe_load(RULE_TESTS.read_text(encoding="utf-8"))["tests"]
    cases = [case for test in tested for case in test["alert_rule_test"]]
    for name, rule in alerts().items():
        assert name in headings
        url = rule["annotations"]["runbook_url"]
        assert url == f"deploy/docs/runbook.md#{name.lower()}"
        outcomes = [bool(case["exp_alerts"]) for case in cases if case["alertname"] == name]
        assert outcomes == [True, False], name
        assert rule["labels"]["severity"] in {"page", "ticket"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize(
    "arguments",
    [("check", "config", str(PROMETHEUS / "prometheus.yml")), ("test", "rules", str(RULE_TESTS))],
)
def test_promtool_accepts_the_rules(arguments: tuple[str, ...]) -> None:
    """The configuration is valid, and the unit tests of the rules pass."""
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)  # noqa: S607
    assert done.returncode == 0, done.stdout + done.stderr
