"""The stages that run in the build process: validate, index, recall, matrix, files, compare."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from core import __version__
from core.attributes.column_writer import ColumnWriter
from core.attributes.values import Attributes, checked_attributes
from core.errors import BuildFailed, Corrupt, EmptyModel
from core.index import files
from core.index.attribute_rows import PulledAttributes
from core.index.manifest import MANIFEST, Counts, FileInfo, MatrixInfo, Software, decode_manifest
from core.index.rows import Rows, read_rows
from core.index.version import IdTable
from core.models import Progress, ProgressCallback, Stage
from core.vectors.arrays import REASONS, WRONG_DIMENSION, Floats, check_rows, prepare, row_blocks
from core.vectors.builder import BuiltIndex, build_index
from core.vectors.changes import Changes, changes, unchanged
from core.vectors.families import set_threads, software
from core.vectors.matrix import Matrix, exact_matrix, index_matrix
from core.vectors.parameters import Trial
from core.vectors.search import Searcher
from worker.building.protocol import BuildOutput, BuildSpec

_NAMED_MAX: Final = 100
"""Product ids listed in the report, for each reason."""


class BuildReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """`report.json`: what people ask about a build, and is too long for the manifest."""

    quarantined: dict[str, list[str]]
    """Reason → up to 100 product ids, ascending."""
    trials: tuple[Trial, ...]
    """Every measurement of recall made to find the search parameters."""
    attributes_left_out: list[str] = []
    """Up to 100 product ids, ascending, whose stored attributes cannot be read: they have none."""


_decode_report: Final = msgspec.json.Decoder(BuildReport).decode


class _StageTimer:
    """Passes progress on, and measures the seconds of each stage."""

    def __init__(self, report: ProgressCallback) -> None:
        self.seconds: dict[str, float] = {}
        self._report = report
        self._stage: Stage | None = None
        self._since = 0.0

    def __call__(self, progress: Progress) -> None:
        if progress.stage != self._stage:
            self.stop()
            self._stage, self._since = progress.stage, time.perf_counter()
        self._report(progress)

    def stop(self) -> None:
        """Ends the current stage."""
        if self._stage is not None:
            spent = time.perf_counter() - self._since
            self.seconds[self._stage] = round(self.seconds.get(self._stage, 0.0) + spent, 3)
        self._stage = None


class _ValidRows(msgspec.Struct, frozen=True):
    ids: list[bytes]
    vectors: Floats
    """float32 (n, d), prepared, sorted by id, mapped from the version's file."""
    counts: Counts
    quarantined: dict[str, list[str]]


def build_version(spec: BuildSpec, report: ProgressCallback) -> BuildOutput:
    """Writes every file of a version but its manifest. Sets FAISS's threads for the process.

    Raises:
        BuildFailed: it cannot succeed as requested; says what to change.
        EmptyModel: there is no row.
        Corrupt: the pulled rows are incomplete.
    """
    timer = _StageTimer(report)
    if spec.columns_only:
        return _renew_columns(spec, Path(spec.out_dir), timer)
    set_threads(spec.threads)
    out = Path(spec.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    valid = _validate(spec, out, timer)
    with_attributes, left_out = _write_columns(spec, valid.ids, out / files.COLUMNS)
    timer(Progress("index", 0, len(valid.ids)))
    built = build_index(
        valid.vectors,
        spec.metric,
        target_recall=spec.parameters.target_recall,
        limits=spec.index_limits,
        progress=timer,
        forced=spec.family,
        threads=spec.threads,
    )
    matrix = _matrix(spec, valid.vectors, built, timer)
    report_of_build = BuildReport(valid.quarantined, built.trials, left_out)
    written = _write_files(out, valid, built, matrix, report_of_build, timer)
    changed = _changes(spec, valid, matrix, timer)
    timer.stop()
    index_bytes = written[files.INDEX].bytes if files.INDEX in written else 0
    return BuildOutput(
        counts=valid.counts,
        index=msgspec.structs.replace(built.info, bytes=index_bytes),
        recall=built.recall,
        filtered_recall=built.bands,
        matrix=MatrixInfo(
            k=spec.parameters.matrix_k,
            exact=matrix.exact,
            recall=1.0 if matrix.recall is None else matrix.recall,
        ),
        files=dict(sorted(written.items())),
        software=Software(k9=__version__, threads=spec.threads, **software()),
        stages=timer.seconds,
        changes=changed,
        rows_with_attributes=with_attributes,
    )


def _validate(spec: BuildSpec, directory: Path, report: ProgressCallback) -> _ValidRows:
    """Quarantines invalid rows, and writes the others in ascending order of their ids."""
    report(Progress("validate"))
    rows = read_rows(Path(spec.rows_dir), spec.dimension)
    total = len(rows.ids)
    if not total and not rows.wrong_dimension:
        raise EmptyModel(f"{spec.model_version} has no embedding to build from")
    codes = np.empty(total, dtype=np.int8)
    for block in row_blocks(total, spec.dimension):
        codes[block] = check_rows(rows.vectors[rows.slots[block]], spec.metric)
        report(Progress("validate", block.stop, 2 * total))
    quarantined, counts = _quarantine(rows, codes)
    good = np.flatnonzero(codes == 0)
    if not good.size:
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        raise BuildFailed(f"{spec.model_version} has no valid embedding: {reasons}")
    path = directory / files.VECTORS
    out = files.create_vectors(path, good.shape[0], spec.dimension)
    for block in row_blocks(*out.shape):
        out[block] = prepare(rows.vectors[rows.slots[good[block]]], spec.metric)
        report(Progress("validate", total + block.stop, 2 * total))
    out.flush()  # type: ignore[attr-defined]
    del out
    ids = rows.ids if good.shape[0] == total else [rows.ids[row] for row in good.tolist()]
    vectors = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    return _ValidRows(ids, vectors, Counts(len(ids), rows.tombstones, counts), quarantined)


def _write_columns(spec: BuildSpec, ids: list[bytes], path: Path) -> tuple[int, list[str]]:
    """Writes the attributes of the rows, in their order, if any row has some.

    Returns how many have, and the first ids of those whose attributes cannot be read.

    Raises:
        BuildFailed: they are larger than allowed.
    """
    path.unlink(missing_ok=True)
    pulled = PulledAttributes(Path(spec.rows_dir))
    left_out: list[str] = []
    if not len(pulled):
        return 0, left_out
    writer = ColumnWriter(len(ids), bytes_max=spec.columns_bytes_max)
    for product_id in ids:
        text = pulled.text(product_id)
        attributes: Attributes = {}
        try:
            attributes = checked_attributes(text) if text else {}
        except Corrupt:
            left_out.append(product_id.decode())
        writer.append(attributes)
    if writer.with_attributes:
        writer.write(path)
    return writer.with_attributes, left_out[:_NAMED_MAX]


def _renew_columns(spec: BuildSpec, directory: Path, timer: _StageTimer) -> BuildOutput:
    """Builds the columns of the version in a directory anew; all else stays as it is."""
    manifest = decode_manifest((directory / MANIFEST).read_bytes())
    timer(Progress("files", 0, 2))
    ids = list(IdTable(directory / files.IDS))
    with_attributes, left_out = _write_columns(spec, ids, directory / files.COLUMNS)
    timer(Progress("files", 1, 2))
    path = directory / files.REPORT
    build_report = _decode_report(path.read_bytes())
    build_report = msgspec.structs.replace(build_report, attributes_left_out=left_out)
    path.write_bytes(msgspec.json.encode(build_report))
    written = {name: info for name, info in manifest.files.items() if name != files.COLUMNS}
    written[files.REPORT] = files.file_info(path)
    if with_attributes:
        written[files.COLUMNS] = files.file_info(directory / files.COLUMNS)
    timer(Progress("files", 2, 2))
    neighbors = np.load(directory / files.NEIGHBORS, mmap_mode="r", allow_pickle=False)
    timer.stop()
    return BuildOutput(
        counts=manifest.counts,
        index=manifest.index,
        recall=manifest.recall,
        filtered_recall=manifest.filtered_recall,
        matrix=manifest.matrix,
        files=dict(sorted(written.items())),
        software=manifest.software,
        stages=timer.seconds,
        changes=unchanged(manifest.build_id, neighbors),
        rows_with_attributes=with_attributes,
        reused_build_id=manifest.reused_build_id or manifest.build_id,
    )


def _quarantine(
    rows: Rows, codes: np.ndarray[tuple[int], np.dtype[np.int8]]
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """For each reason, the first product ids quarantined for it, and how many there are."""
    named: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    for code, reason in enumerate(REASONS):
        bad = np.flatnonzero(codes == code)
        if code and bad.size:
            counts[reason] = int(bad.size)
            named[reason] = [rows.ids[row].decode() for row in bad[:_NAMED_MAX].tolist()]
    if rows.wrong_dimension:
        counts[WRONG_DIMENSION] = len(rows.wrong_dimension)
        named[WRONG_DIMENSION] = [i.decode() for i in rows.wrong_dimension[:_NAMED_MAX]]
    return named, counts


def _matrix(
    spec: BuildSpec, vectors: Floats, built: BuiltIndex, report: ProgressCallback
) -> Matrix:
    total, k = vectors.shape[0], spec.parameters.matrix_k
    report(Progress("matrix", 0, total))
    if total <= spec.matrix_exact_rows_max or built.index is None:
        return exact_matrix(vectors, spec.metric, k, report, spec.threads)
    searcher = Searcher(vectors, spec.metric, built.info, built.index, built.order, built.members)
    return index_matrix(vectors, searcher, k, report)


def _changes(
    spec: BuildSpec, valid: _ValidRows, matrix: Matrix, report: ProgressCallback
) -> Changes | None:
    """The differences from the previous version, read from its files."""
    if spec.previous is None:
        return None
    report(Progress("compare", 0, len(valid.ids)))
    directory = Path(spec.previous.directory)
    neighbors = np.load(directory / files.NEIGHBORS, mmap_mode="r", allow_pickle=False)
    before = (spec.previous.build_id, IdTable(directory / files.IDS), neighbors)
    return changes(before, valid.ids, matrix.neighbors, report)


def _write_files(
    directory: Path,
    valid: _ValidRows,
    built: BuiltIndex,
    matrix: Matrix,
    build_report: BuildReport,
    report: ProgressCallback,
) -> dict[str, FileInfo]:
    """Writes the files that are not there yet, but the manifest.

    Checksums are of what is on disk.
    """
    steps: dict[str, Callable[[Path], object]] = {
        files.IDS: lambda path: files.write_ids(path, valid.ids),
        files.NEIGHBORS: lambda path: files.write_array(path, matrix.neighbors),
        files.SCORES: lambda path: files.write_array(path, matrix.scores),
        files.PARQUET: lambda path: files.write_parquet(path, valid.ids, matrix),
        files.NPZ: lambda path: files.write_npz(path, valid.ids, matrix),
        files.REPORT: lambda path: path.write_bytes(msgspec.json.encode(build_report)),
    }
    if built.index is not None and built.order is not None:
        order = built.order
        steps[files.INDEX] = lambda path: files.write_index(path, built.index)
        steps[files.ORDER] = lambda path: files.write_array(path, order)
    if built.members is not None:
        starts, rows = built.members.starts, built.members.rows
        steps[files.MEMBER_STARTS] = lambda path: files.write_array(path, starts)
        steps[files.MEMBER_ROWS] = lambda path: files.write_array(path, rows)
        if (radii := built.members.radii) is not None:
            steps[files.MEMBER_RADII] = lambda path: files.write_array(path, radii)
    early = [name for name in (files.VECTORS, files.COLUMNS) if (directory / name).exists()]
    total = len(early) + len(steps)
    report(Progress("files", 0, total))
    written = {name: files.file_info(directory / name) for name in early}
    for name, write in steps.items():
        write(directory / name)
        written[name] = files.file_info(directory / name)
        report(Progress("files", len(written), total))
    return written
