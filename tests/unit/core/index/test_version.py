import zipfile
from contextlib import closing
from pathlib import Path

import faiss
import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from core.errors import Corrupt, NewerFormat
from core.index import files
from core.index.manifest import Manifest, decode_manifest, manifest_of
from core.index.rows import RowWriter
from core.index.version import IdTable, MappedVersion, verify_files
from core.models import BuildParameters, Embedding, Family
from core.vectors.search import Exclusion
from tests.unit.building import build_here
from tests.unit.core.vectors.sets import catalogue
from worker.building.protocol import BuildSpec

ROWS = 400


def ids(count: int = ROWS) -> list[str]:
    """Product ids, some of them awkward, in no order."""
    awkward = ["a/b", "with space", "100%", "ü" * 256, "日本", "pandas"]
    return awkward + [f"product-{number * 7919 % 1000:03}" for number in range(count - 6)]


def write_version(
    directory: Path,
    family: Family,
    *,
    matrix_exact_rows_max: int = 1000,
    copies: int = 0,
    noise: float = 0.0,
) -> Manifest:
    """A whole version of real rows, through the same functions as a worker."""
    vectors = catalogue()[:ROWS].copy()
    vectors[ROWS - copies :] = vectors[0]
    random = np.random.default_rng(0)
    vectors[ROWS - copies :] += noise * random.standard_normal((copies, 384)).astype(np.float32)
    with closing(RowWriter(directory / "rows", 384)) as writer:
        writer.append(
            [
                Embedding(product_id, "m", vector.tobytes(), 384, "2025-01-01T00:00:00Z")
                for product_id, vector in zip(ids(), vectors, strict=True)
            ]
        )
    spec = BuildSpec(
        rows_dir=str(directory / "rows"),
        out_dir=str(directory / "out"),
        model_version="m",
        dimension=384,
        metric="cosine",
        parameters=BuildParameters(target_recall=0.8, matrix_k=7, deterministic=True),
        family=family,
        matrix_exact_rows_max=matrix_exact_rows_max,
    )
    return build_here(spec, epoch=3)


@pytest.fixture(scope="module", params=["exact", "hnsw_flat", "hnsw_sq8", "ivf_pq"])
def version(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Manifest]:
    """A version of each family."""
    directory = tmp_path_factory.mktemp("version")
    return directory / "out", write_version(directory, request.param)


def test_a_version_opens_and_answers(version: tuple[Path, Manifest]) -> None:
    """What was written is what is served, by its ids."""
    directory, manifest = version
    opened = MappedVersion.open(directory, manifest)
    verify_files(directory, manifest)
    assert (opened.searcher.n, opened.searcher.d, opened.searcher.metric) == (ROWS, 384, "cosine")
    for product_id, vector in zip(ids()[:20], catalogue(), strict=False):
        row = opened.ids.row_of(product_id)
        assert row is not None
        assert opened.ids[row].decode() == product_id
        assert np.allclose(opened.searcher.rows[row], vector, atol=1e-3)
        near, found = opened.searcher.search_one(vector, 5)
        assert opened.ids.ids_of(near)[0] == product_id
        assert found[0] == 1.0
        others, values = opened.neighbors[row, :5], opened.scores[row, :5]
        assert row not in others.tolist()
        wanted, scores = opened.searcher.search_one(
            opened.searcher.rows[row], 5, exact=True, excluded=Exclusion(ROWS, np.array([row]))
        )
        assert values.tolist() == scores.tolist()
        assert opened.neighbors[row].shape == (7,)
        assert wanted.shape == others.shape
    assert opened.ids.row_of("no such product") is None
    assert opened.ids.row_of("") is None


def test_the_manifest_reads_back(version: tuple[Path, Manifest]) -> None:
    """It is what was returned, and passes over what it does not know."""
    directory, manifest = version
    data = (directory / "manifest.json").read_bytes()
    assert decode_manifest(data) == manifest
    later = msgspec.json.decode(data) | {"new_field": 1}
    assert decode_manifest(msgspec.json.encode(later)) == manifest
    assert manifest.counts.rows == ROWS
    assert manifest.resident_bytes > 384 * 4 * ROWS
    assert set(manifest.stages) >= {"validate", "index", "matrix", "files"}
    assert manifest.software.faiss == faiss.__version__


def test_manifests_of_earlier_releases_are_read(version: tuple[Path, Manifest]) -> None:
    """They tell no worst recall, and know no near copies."""
    directory, manifest = version
    old = msgspec.json.decode((directory / "manifest.json").read_bytes())
    del old["recall"]["zero"], old["index"]["near_copies"], old["index"]["near_copies_max"]
    read = decode_manifest(msgspec.json.encode(old))
    assert read.recall.zero is None
    assert read.recall.value == manifest.recall.value
    assert MappedVersion.open(directory, read).searcher.n == ROWS


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"format": "2"}'])
def test_what_is_no_manifest_is_corrupt(data: bytes) -> None:
    """Cut short, or something else."""
    with pytest.raises(Corrupt, match="manifest"):
        decode_manifest(data)


def test_a_manifest_of_a_later_release_is_refused_as_such(version: tuple[Path, Manifest]) -> None:
    """Not as damaged, whatever else is in it; the error has both numbers and what to do."""
    directory, _ = version
    later = msgspec.json.decode((directory / "manifest.json").read_bytes()) | {"format": 3}
    for fields in (later, {"format": 3}, later | {"index": "of another kind"}):
        data = msgspec.json.encode(fields)
        with pytest.raises(NewerFormat, match=r"format 3, .* up to 2: .* Upgrade"):
            decode_manifest(data)
        with pytest.raises(NewerFormat, match="format 3"):
            manifest_of(fields)


def test_the_same_rows_make_the_same_bytes(version: tuple[Path, Manifest], tmp_path: Path) -> None:
    """Every file but the manifest, which tells the time."""
    _, manifest = version
    again = write_version(tmp_path, manifest.index.family)
    assert again.files == manifest.files


def test_the_matrix_for_people(version: tuple[Path, Manifest]) -> None:
    """The Parquet file has every pair by name, best first."""
    directory, manifest = version
    opened = MappedVersion.open(directory, manifest)
    table = pq.read_table(directory / files.PARQUET)
    assert table.column_names == ["product_id", "rank", "neighbor_id", "score"]
    assert table.num_rows == ROWS * 7
    lines = [line for line in table.to_pylist() if line["product_id"] == "pandas"]
    row = opened.ids.row_of("pandas")
    assert row is not None
    near, scores = opened.neighbors[row, :7], opened.scores[row, :7]
    assert [line["rank"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["neighbor_id"] for line in lines] == opened.ids.ids_of(near)
    assert [line["score"] for line in lines] == scores.tolist()


def test_the_matrix_for_programs(version: tuple[Path, Manifest]) -> None:
    """The archive has what scipy's load_npz asks for, and the ids."""
    directory, manifest = version
    opened = MappedVersion.open(directory, manifest)
    with np.load(directory / files.NPZ, allow_pickle=False) as matrix:
        assert matrix["format"].item() == b"csr"
        assert matrix["shape"].tolist() == [ROWS, ROWS]
        indptr, indices, data = matrix["indptr"], matrix["indices"], matrix["data"]
        assert indptr[-1] == len(indices) == len(data) == ROWS * 7
        near, scores = opened.neighbors[5, :7], opened.scores[5, :7]
        assert indices[indptr[5] : indptr[6]].tolist() == near.tolist()
        assert data[indptr[5] : indptr[6]].tolist() == scores.tolist()
        starts = matrix["id_offsets"]
        name = matrix["ids"][starts[5] : starts[6]].tobytes().decode()
        assert name == opened.ids[5].decode()
    with zipfile.ZipFile(directory / files.NPZ) as archive:
        assert {entry.date_time[0] for entry in archive.infolist()} == {1980}


def test_copies_are_served(tmp_path: Path) -> None:
    """A version with copies has files that say which rows they are."""
    manifest = write_version(tmp_path, "hnsw_flat", copies=50)
    assert manifest.index.positions == ROWS - 50
    assert files.MEMBER_ROWS in manifest.files
    assert manifest.format == 1
    opened = MappedVersion.open(tmp_path / "out", manifest)
    _, found = opened.searcher.search_one(catalogue()[0], 51)
    assert found.tolist() == [1.0] * 51


def test_near_copies_are_served(tmp_path: Path) -> None:
    """Each with its own score, and as a format that readers without near copies refuse."""
    manifest = write_version(tmp_path, "hnsw_flat", copies=50, noise=1e-4)
    assert manifest.index.positions == ROWS - 50
    assert manifest.index.near_copies == 50
    assert manifest.format == 2
    assert files.MEMBER_RADII in manifest.files
    zero = manifest.recall.zero
    assert zero is not None
    assert (zero.copies, zero.upper <= 0.001) == (0.0, True)
    opened = MappedVersion.open(tmp_path / "out", manifest)
    near, found = opened.searcher.search_one(catalogue()[0], 51)
    exact, wanted = opened.searcher.search_one(catalogue()[0], 51, exact=True)
    assert near.tolist() == exact.tolist()
    assert found.tolist() == wanted.tolist()
    assert len(set(found.tolist())) >= 5
    assert write_version(tmp_path / "again", "hnsw_flat", copies=50, noise=1e-4).files == (
        manifest.files
    )
    (tmp_path / "out" / files.MEMBER_RADII).unlink()
    with pytest.raises(Corrupt, match=files.MEMBER_RADII):
        MappedVersion.open(tmp_path / "out", manifest)


def test_a_matrix_made_by_the_index_says_so(tmp_path: Path) -> None:
    """Above the limit the manifest has the matrix's measured recall."""
    manifest = write_version(tmp_path, "hnsw_sq8", matrix_exact_rows_max=100)
    assert not manifest.matrix.exact
    assert 0.8 <= manifest.matrix.recall <= 1.0


@pytest.mark.parametrize("name", [files.IDS, files.VECTORS, files.INDEX, files.REPORT])
def test_a_file_that_changed_is_named(tmp_path: Path, name: str) -> None:
    """Other bytes are found by checksum, another size before that, and a missing file too."""
    manifest = write_version(tmp_path, "hnsw_flat")
    path = tmp_path / "out" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(Corrupt, match=name):
        verify_files(path.parent, manifest)
    path.write_bytes(data[:-1])
    with pytest.raises(Corrupt, match=name):
        verify_files(path.parent, manifest)
    if name != files.REPORT:
        with pytest.raises(Corrupt, match=name):
            MappedVersion.open(path.parent, manifest)
    path.unlink()
    with pytest.raises(Corrupt, match=f"{name} is missing"):
        verify_files(path.parent, manifest)


def test_files_of_another_layout_are_corrupt(tmp_path: Path) -> None:
    """Of the right size, and still not what the manifest tells."""
    manifest = write_version(tmp_path, "hnsw_flat")
    directory = tmp_path / "out"
    for name in (files.IDS, files.VECTORS, files.INDEX):
        good = (directory / name).read_bytes()
        (directory / name).write_bytes(b"\xff" * 64 + good[64:])
        with pytest.raises(Corrupt, match=name):
            MappedVersion.open(directory, manifest)
        (directory / name).write_bytes(good)
    odd = msgspec.structs.replace(
        manifest, files=manifest.files | {"../../etc/passwd": manifest.files[files.IDS]}
    )
    with pytest.raises(Corrupt, match="outside"):
        verify_files(directory, odd)
    MappedVersion.open(directory, manifest)


def test_ids_are_found_both_ways(tmp_path: Path) -> None:
    """For every id, and for none that lies between two of them."""
    names = sorted(name.encode() for name in ids(500))
    files.write_ids(tmp_path / "ids", names)
    table = IdTable(tmp_path / "ids")
    assert list(table) == names
    assert [table.row_of(name.decode()) for name in names] == list(range(500))
    assert all(table.row_of(name.decode() + "\x01") is None for name in names)
    assert table.ids_of(np.array([3, 1], np.int64)) == [names[3].decode(), names[1].decode()]
