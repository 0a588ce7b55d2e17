"""The attributes of a pull on disk: what is read is what a dict would hold in the end."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Corrupt
from core.index.attribute_rows import AttributesWriter, PulledAttributes
from core.models import StoredAttributes

AT = "2026-01-01T00:00:00.000000Z"


def write(directory: Path, pages: Sequence[Sequence[tuple[str, str]]]) -> None:
    """All pages of a pull."""
    with closing(AttributesWriter(directory)) as writer:
        for page in pages:
            writer.append([StoredAttributes(name, text, AT) for name, text in page])


@given(
    changes=st.lists(st.tuples(st.sampled_from("aéb/"), st.sampled_from(["", "{}", '{"ü":1}']))),
    page=st.integers(1, 4),
)
def test_reading_is_replaying(
    changes: list[tuple[str, str]], page: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever came, in whichever pages, the latest text of each product is found."""
    directory = tmp_path_factory.mktemp("attributes")
    write(directory, [changes[start : start + page] for start in range(0, len(changes), page)])
    pulled = PulledAttributes(directory)
    assert len(pulled) == len(dict(changes))
    for name in ("a", "é", "b", "/", "never"):
        assert pulled.text(name.encode()).decode() == dict(changes).get(name, "")


def test_a_model_without_attributes_has_none(tmp_path: Path) -> None:
    """Nobody writes files then, and no product has any."""
    pulled = PulledAttributes(tmp_path)
    assert len(pulled) == 0
    assert pulled.text(b"p") == b""


def test_a_pull_that_did_not_end_is_refused(tmp_path: Path) -> None:
    """Files that do not fit together never become columns."""
    write(tmp_path, [[("a", '{"x":1}'), ("b", "{}")]])
    whole = (tmp_path / "attributes.bin").read_bytes()
    (tmp_path / "attributes.bin").write_bytes(whole[:-1])
    with pytest.raises(Corrupt, match="did not finish"):
        PulledAttributes(tmp_path)
