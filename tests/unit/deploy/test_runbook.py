"""The runbook has a section for every alert, and names only what exists."""

import re
import shlex
from pathlib import Path

import click
import msgspec
import pytest
import yaml

from core.settings import Settings
from deploy.cli import main

_ROOT = Path(__file__).parents[3]
_RUNBOOK = (_ROOT / "deploy/docs/runbook.md").read_text(encoding="utf-8")
_DOCUMENTS = [_RUNBOOK, (_ROOT / "deploy/docs/operations.md").read_text(encoding="utf-8")]
_RULES = _ROOT / "deploy/observability/prometheus/rules.yml"
_ALARMS = [_ROOT / f"deploy/cloudformation/{name}.yaml" for name in ("alarms", "backup")]


def _sections(part: str) -> list[str]:
    text = _RUNBOOK.partition(f"\n# {part}\n")[2].partition("\n# ")[0]
    return re.findall(r"^## (.+)$", text, re.MULTILINE)


def test_every_alert_of_prometheus_has_its_section() -> None:
    """Under its own name, to which the alert's `runbook_url` leads; and no section is of none."""
    rules = yaml.safe_load(_RULES.read_text(encoding="utf-8"))
    alerts = {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"]}
    assert sorted(alerts) == sorted(_sections("Prometheus"))
    for name, rule in alerts.items():
        assert rule["annotations"]["runbook_url"] == f"deploy/docs/runbook.md#{name.lower()}"


def test_every_alarm_of_cloudwatch_has_its_section() -> None:
    """By its name without the environment and the table."""
    pattern = r"AlarmName: .*k9-\$\{Environment\}-([a-z-]+)"
    texts = [path.read_text(encoding="utf-8") for path in _ALARMS]
    names = {name.rstrip("-") for text in texts for name in re.findall(pattern, text)}
    assert names | {"budget"} == set(_sections("CloudWatch"))


def test_every_section_says_what_to_do() -> None:
    """Meaning first, then the rest."""
    for section in re.split(r"^## ", _RUNBOOK, flags=re.MULTILINE)[1:]:
        assert re.search(r"^\*Means(, do)?:\*", section, re.MULTILINE), section
        assert re.search(r"do:\*|Do:\*", section), section


def _commands() -> list[str]:
    found = {c for text in _DOCUMENTS for c in re.findall(r"`(k9 [^`]+)`", text)}
    lines = {
        line.partition("#")[0].strip()
        for text in _DOCUMENTS
        for line in re.findall(r"^    (?:[A-Z0-9_]+=\S+ )*(k9 .*)$", text, re.MULTILINE)
    }
    return sorted(found | lines)


@pytest.mark.parametrize("text", _commands())
def test_commands_exist_with_these_options(text: str) -> None:
    """Each is parsed by the command that it names, without being run."""
    name, *arguments = shlex.split(text.replace("…", ""))[1:]
    group = main.k9
    assert isinstance(group, click.Group)
    command = group.get_command(click.Context(group), name)
    assert command is not None, name
    if isinstance(command, click.Group) and arguments:
        inner = command.get_command(click.Context(command), arguments.pop(0))
        assert inner is not None, text
        command = inner
    options = {option for parameter in command.params for option in parameter.opts}
    for argument in arguments:
        if argument.startswith("--"):
            assert argument.partition("=")[0] in options, text


def test_settings_exist() -> None:
    """Every variable that the documents name is one of the settings."""

    def variables(group: type[msgspec.Struct]) -> set[str]:
        names = set()
        for field in msgspec.structs.fields(group):
            if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
                names |= variables(field.type)
            else:
                names.add(f"K9_{field.name.upper()}")
        return names

    known = variables(Settings) | {"K9_TOKEN", "K9_URL"}
    named = {v for text in _DOCUMENTS for v in re.findall(r"\bK9_[A-Z0-9_]+\b", text)}
    assert named <= known, named - known
