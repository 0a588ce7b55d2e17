from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Corrupt
from core.index.rows import VECTORS, RowWriter, read_rows
from core.models import Embedding


def row(product_id: str, value: float, dimension: int = 2) -> Embedding:
    """A row whose vector has one number throughout."""
    vector = np.full(dimension, value, np.float32).tobytes()
    return Embedding(product_id, "m", vector, dimension, "2025-01-01T00:00:00Z")


def tombstone(product_id: str) -> Embedding:
    """The row that a delete leaves."""
    at = "2025-01-01T00:00:00Z"
    return Embedding(product_id, "m", None, 0, at, deleted_at=at)


def write(directory: Path, pages: Sequence[Sequence[Embedding]]) -> None:
    """All pages of a pull."""
    with closing(RowWriter(directory, 2)) as writer:
        for page in pages:
            writer.append(page)


def test_rows_come_back_sorted_by_the_bytes_of_their_ids(tmp_path: Path) -> None:
    """Order of arrival, pages and shards do not show."""
    write(tmp_path, [[row("é", 1), row("b", 2)], [], [row("a/ %", 3)]])
    rows = read_rows(tmp_path, 2)
    assert rows.ids == [b"a/ %", b"b", "é".encode()]
    assert rows.vectors[rows.slots][:, 0].tolist() == [3, 2, 1]


def test_the_latest_row_wins(tmp_path: Path) -> None:
    """Overwrites, deletes, and writes over a delete are what they were last."""
    write(
        tmp_path,
        [
            [row("kept", 1), row("deleted", 1), row("back", 1), row("odd", 1)],
            [row("kept", 2), tombstone("deleted"), tombstone("back"), row("odd", 9, 3)],
            [row("back", 3), row("mended", 9, 1), row("mended", 4)],
        ],
    )
    rows = read_rows(tmp_path, 2)
    assert rows.ids == [b"back", b"kept", b"mended"]
    assert rows.vectors[rows.slots][:, 0].tolist() == [3, 2, 4]
    assert rows.tombstones == 1
    assert rows.wrong_dimension == [b"odd"]


@pytest.mark.parametrize("pages", [[], [[tombstone("gone")]], [[row("odd", 1, 5)]]])
def test_no_vector_at_all_is_read_too(tmp_path: Path, pages: list[list[Embedding]]) -> None:
    """An empty pull, only tombstones, only rows of a wrong dimension."""
    write(tmp_path, pages)
    rows = read_rows(tmp_path, 2)
    assert rows.ids == []
    assert rows.slots.shape == (0,)


def test_a_pull_that_did_not_end_is_told(tmp_path: Path) -> None:
    """Files that do not fit together never become an index."""
    write(tmp_path, [[row("a", 1), row("b", 2)]])
    (tmp_path / VECTORS).write_bytes(b"\0" * 12)
    with pytest.raises(Corrupt, match="did not finish"):
        read_rows(tmp_path, 2)


CHANGES = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.sampled_from([None, 1.0, 2.0, 3.0])), max_size=40
)


@given(CHANGES, st.integers(1, 7))
def test_reading_is_replaying(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, float | None]], page: int
) -> None:
    """Whatever came, what is read is what a dict would hold in the end."""
    directory = tmp_path_factory.mktemp("rows")
    embeddings = [tombstone(i) if value is None else row(i, value) for i, value in changes]
    write(directory, [embeddings[s : s + page] for s in range(0, len(embeddings), page)])
    rows = read_rows(directory, 2)
    wanted = {i.encode(): value for i, value in dict(changes).items() if value is not None}
    assert dict(zip(rows.ids, rows.vectors[rows.slots][:, 0].tolist(), strict=True)) == wanted
    assert rows.ids == sorted(wanted)
