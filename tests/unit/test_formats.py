"""What is stored or sent is written as the newest golden file has it, and every one is read."""

import importlib
import pkgutil
from typing import Any, get_args

import msgspec
import pytest

from core import repositories
from core.dynamo.items import Codec
from core.results import Result
from tests.golden.format import FILES, Format
from tests.golden.formats import FORMATS

BY_NAME = {each.name: each for each in FORMATS}


@pytest.mark.parametrize("name", [each.name for each in FORMATS if each.written])
def test_a_changed_format_has_a_golden_file_of_its_own(name: str) -> None:
    """`python -m tests.golden.write` adds it beside those of earlier releases."""
    each = BY_NAME[name]
    assert each.files(), "no golden file yet: run `python -m tests.golden.write`"
    assert each.encode(each.sample) == each.files()[-1].read_bytes()


@pytest.mark.parametrize("name", BY_NAME)
def test_what_any_release_wrote_is_read(name: str) -> None:
    """Field by field; what a release did not have yet is what it is by default."""
    each = BY_NAME[name]
    for path in each.files():
        _assert_as_meant(each.decode(path.read_bytes()), each)


def _assert_as_meant(found: Any, each: Format[Any]) -> None:
    sample = each.sample
    if not isinstance(sample, msgspec.Struct):
        assert found == sample
        return
    assert type(found) is type(sample)
    for field in msgspec.structs.fields(sample):
        value = getattr(found, field.name)
        assert value in (getattr(sample, field.name), field.default), field.name
    newest = each.decode(each.files()[-1].read_bytes())
    assert newest == sample


def test_every_file_is_of_a_format() -> None:
    """So that a renamed format leaves none behind, unread."""
    assert {path for each in FORMATS for path in each.files()} == set(FILES.iterdir())


def test_every_row_has_a_format() -> None:
    """Each Struct that a codec of the repositories writes to a table."""
    found = pkgutil.iter_modules(repositories.__path__, "core.repositories.")
    stored = {
        value._kind  # noqa: SLF001 - nobody but this test asks for it
        for module in found
        for value in vars(importlib.import_module(module.name)).values()
        if isinstance(value, Codec)
    }
    assert len(stored) > 1
    assert stored <= {type(each.sample) for each in FORMATS}


def test_every_result_has_a_format() -> None:
    """Each that an idempotency key can have."""
    sampled = {type(each.sample) for each in FORMATS if each.name.startswith("result-")}
    assert sampled == set(get_args(Result))
