"""The page of guarantees: each line names what shows it, and all that it names is there."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "deploy" / "docs" / "guarantees.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
NAMED = sorted(set(re.findall(r"`([^`\n]+)`", PAGE)))
TESTS = [name for name in NAMED if name.startswith("tests/")]
FILES = [name for name in NAMED if re.match(r"(api|core|deploy|worker)/", name)]
TARGETS = [name for name in NAMED if name.startswith("make ") and "=" not in name]
MODULES = [name for name in NAMED if name.startswith("python -m ")]
SETTINGS = [name for name in NAMED if name.startswith("K9_")]
SHOWS = re.compile(r"`(tests/|make |python -m |deploy/)[^`]+`")


@pytest.mark.parametrize("name", TESTS)
def test_a_named_test_is_there(name: str) -> None:
    """The file, and the function in it."""
    file, _, function = name.partition("::")
    text = (ROOT / file).read_text()
    assert re.search(rf"^(async )?def {function or 'test_'}", text, re.MULTILINE)


@pytest.mark.parametrize("name", FILES)
def test_a_named_file_is_there(name: str) -> None:
    """As it is spelled."""
    assert (ROOT / name).is_file()


@pytest.mark.parametrize("name", TARGETS)
def test_a_named_target_is_one_of_make(name: str) -> None:
    """With its help text."""
    assert re.search(rf"^{name.removeprefix('make ')}:.*## ", MAKEFILE, re.MULTILINE)


@pytest.mark.parametrize("name", MODULES)
def test_a_named_module_can_be_run(name: str) -> None:
    """By `python -m`."""
    assert find_spec(name.removeprefix("python -m ")) is not None


@pytest.mark.parametrize("name", SETTINGS)
def test_a_named_setting_is_one(name: str) -> None:
    """By its variable."""
    text = (ROOT / "core" / "settings.py").read_text()
    assert f"    {name.removeprefix('K9_').lower()}: " in text


def test_each_line_of_each_table_names_what_shows_it() -> None:
    """In its last column."""
    lines = [line for line in PAGE.splitlines() if line.startswith("|") and "---" not in line]
    rows = [line for line in lines if "shown by" not in line]
    assert len(rows) > 30
    for row in rows:
        assert SHOWS.search(row.strip("|").rpartition(" | ")[2]), row


def test_links_lead_to_pages() -> None:
    """Of the same directory."""
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "deploy" / "docs" / target).exists(), target
