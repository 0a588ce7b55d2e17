"""Which product ids and model versions are good."""

import pytest

from core.errors import Invalid
from core.identifiers import product_id_problem, validate_model_version, validate_product_id

GOOD_IDS = ("a", "a/b", "a b", "100%", "...", ".a", "日本", "e\u0301", "é" * 256, "x" * 512)
BAD_IDS = ("", "   ", ".", "..", "a\nb", "\x00", "a\x7fb", "\x85", "x" * 513, "é" * 257, "\ud800")


@pytest.mark.parametrize("product_id", GOOD_IDS)
def test_good_product_ids_are_taken(product_id: str) -> None:
    """Any text of 1 to 512 bytes will do, slashes and unicode too."""
    validate_product_id(product_id)


@pytest.mark.parametrize("product_id", BAD_IDS)
def test_bad_product_ids_are_refused(product_id: str) -> None:
    """Blank, over-long, control characters, dots that URLs drop, and broken Unicode are not."""
    assert product_id_problem(product_id)
    with pytest.raises(Invalid) as raised:
        validate_product_id(product_id)
    assert [error.field for error in raised.value.errors] == ["product_id"]


@pytest.mark.parametrize("name", ["a", "minilm-l6-v2", "V1.2_x", "9", "a" * 64])
def test_good_model_versions_are_taken(name: str) -> None:
    """Letters, digits and . _ - make a model version."""
    validate_model_version(name)


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "ü", "a" * 65, "a\n", "a#1"])
def test_bad_model_versions_are_refused(name: str) -> None:
    """Anything else does not, least of all what would mix up shards or paths."""
    with pytest.raises(Invalid):
        validate_model_version(name)
