"""A version that was made again: what differs, and why."""

from pathlib import Path

import msgspec
import pytest

from core.index.comparison import compare
from core.index.files import COLUMNS, IDS, INDEX, REPORT, VECTORS
from core.index.manifest import FileInfo, Manifest
from tests.unit.api.serving.versions import make

OTHER = FileInfo("0" * 64, 1)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The manifest of a graph."""
    ids = [f"p{row:03d}" for row in range(200)]
    return make(tmp_path_factory.mktemp("graph"), "b-1", ids, family="hnsw_flat")


def with_others(manifest: Manifest, *names: str) -> Manifest:
    """The same, with other bytes in these files."""
    return msgspec.structs.replace(manifest, files=manifest.files | dict.fromkeys(names, OTHER))


def test_the_same_rows_make_the_same_files(graph: Manifest, tmp_path: Path) -> None:
    """Nothing differs, and nothing needs a reason."""
    again = make(tmp_path, "b-2", [f"p{row:03d}" for row in range(200)], family="hnsw_flat")
    found = compare(graph, again)
    assert (found.reason, found.differing) == ("", [])
    assert {file.name for file in found.files} == set(graph.files)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((IDS, VECTORS, INDEX), "rows have changed"),
        ((VECTORS,), "rows have changed"),
        ((COLUMNS, VECTORS), "rows have changed"),
        ((COLUMNS,), "attributes have changed"),
        ((COLUMNS, REPORT), "attributes have changed"),
    ],
)
def test_what_differs_has_its_reason(graph: Manifest, names: tuple[str, ...], words: str) -> None:
    """Rows or attributes that changed."""
    found = compare(graph, with_others(graph, *names))
    assert words in found.reason
    assert found.differing == sorted(names)


def test_other_software_makes_other_bytes(graph: Manifest) -> None:
    """It is named, old and new."""
    software = msgspec.structs.replace(graph.software, faiss="0.0")
    after = msgspec.structs.replace(with_others(graph, INDEX), software=software)
    assert f"faiss {graph.software.faiss} → 0.0" in compare(graph, after).reason


def test_a_difference_without_a_reason_is_told_apart(graph: Manifest) -> None:
    """The graph of the same rows must be the same, and so must the matrix."""
    assert compare(graph, with_others(graph, INDEX, REPORT)).reason == ""
    assert compare(graph, with_others(graph, "neighbors.npy")).reason == ""
    assert compare(graph, with_others(graph, COLUMNS, INDEX)).reason == ""
    without = {name: info for name, info in graph.files.items() if name != "scores.npy"}
    found = compare(graph, msgspec.structs.replace(graph, files=without))
    assert found.reason == ""
    assert [file.after for file in found.files if not file.same] == ["absent"]
