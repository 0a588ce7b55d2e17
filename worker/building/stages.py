"""The stages of a build inside the child: validate, index, recall, matrix, files, compare.

The clock lives here: `core.vectors` has none.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

import msgspec
import numpy as np

from core.errors import BuildFailed, EmptyModel
from core.index import files
from core.index.manifest import (
    FORMAT,
    FORMAT_NEAR_COPIES,
    MANIFEST,
    Counts,
    FileInfo,
    Manifest,
    MatrixInfo,
    Software,
)
from core.index.rows import Rows, read_rows
from core.index.version import MAPPED, IdTable
from core.models import Stage
from core.vectors.arrays import REASONS, WRONG_DIMENSION, Floats, check_rows, prepare, row_blocks
from core.vectors.builder import BuiltIndex, build_index
from core.vectors.changes import Changes, changes
from core.vectors.families import set_threads, software
from core.vectors.matrix import Matrix, exact_matrix, index_matrix
from core.vectors.parameters import IndexLimits, Trial
from core.vectors.search import Searcher
from worker.building.build_process import ChildJob, Report, thread_count

_NAMED_MAX: Final = 100
"""Ids named in the report, for each reason."""


class BuildReport(msgspec.Struct, frozen=True):
    """`report.json`: what a person asks after a build, and is too long for the manifest."""

    quarantined: dict[str, list[str]]
    """Reason → up to 100 product ids, ascending."""
    trials: tuple[Trial, ...]
    """Every measurement of recall on the way to the search parameters."""


class _Clock:
    """Passes progress on, and adds up the seconds of each stage."""

    def __init__(self, report: Report) -> None:
        self.seconds: dict[str, float] = {}
        self._report = report
        self._stage: Stage | None = None
        self._since = 0.0

    def __call__(self, stage: Stage, done: int, total: int) -> None:
        if stage != self._stage:
            self.stop()
            self._stage, self._since = stage, time.perf_counter()
        self._report(stage, done, total)

    def stop(self) -> None:
        """Ends the present stage."""
        if self._stage is not None:
            spent = time.perf_counter() - self._since
            self.seconds[self._stage] = round(self.seconds.get(self._stage, 0.0) + spent, 3)
        self._stage = None


class _Valid(msgspec.Struct, frozen=True):
    """The rows that make the version."""

    ids: list[bytes]
    vectors: Floats
    """float32 (n, d), prepared, sorted by id, mapped from the version's file."""
    counts: Counts
    quarantined: dict[str, list[str]]


def make_version(job: ChildJob, report: Report) -> Manifest:
    """Writes every file of a version, its manifest last. Sets FAISS's threads for the process.

    Raises:
        BuildFailed: when it cannot succeed as asked.
        EmptyModel: when there is no row.
        Corrupt: when the pulled rows do not fit together.
    """
    clock = _Clock(report)
    threads = thread_count(job.limits.threads)
    set_threads(threads)
    out = Path(job.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    valid = _validate(job, out, clock)
    limits = IndexLimits(index_bytes_max=job.limits.index_bytes_max)
    if job.limits.exact_numbers_max is not None:
        limits = msgspec.structs.replace(limits, exact_numbers_max=job.limits.exact_numbers_max)
    clock("index", 0, len(valid.ids))
    built = build_index(
        valid.vectors,
        job.metric,
        target_recall=job.parameters.target_recall,
        limits=limits,
        progress=lambda stage, done, total: clock(cast("Stage", stage), done, total),
        forced=job.family,
        deterministic=job.parameters.deterministic,
        threads=threads,
    )
    matrix = _matrix(job, valid.vectors, built, clock)
    written = _write_files(out, valid, built, matrix, clock)
    changed = _changes(job, valid, matrix, clock)
    clock.stop()
    manifest = _manifest(job, valid, built, matrix, written, clock.seconds)
    manifest = msgspec.structs.replace(manifest, changes=changed)
    files.write_bytes(out / MANIFEST, manifest.encode())
    return manifest


def _validate(job: ChildJob, directory: Path, clock: _Clock) -> _Valid:
    """Leaves bad rows out, counts and names them, and writes the others in order of their ids."""
    clock("validate", 0, 0)
    rows = read_rows(Path(job.rows_dir), job.dimension)
    total = len(rows.ids)
    if not total and not rows.wrong_dimension:
        raise EmptyModel(f"{job.model_version} has no embedding to build from")
    codes = np.empty(total, dtype=np.int8)
    for block in row_blocks(total, job.dimension):
        codes[block] = check_rows(rows.vectors[rows.slots[block]], job.metric)
        clock("validate", block.stop, 2 * total)
    quarantined, counts = _quarantine(rows, codes)
    good = np.flatnonzero(codes == 0)
    if not good.size:
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        raise BuildFailed(f"{job.model_version} has no valid embedding: {reasons}")
    path = directory / files.VECTORS
    out = files.create_vectors(path, good.shape[0], job.dimension)
    for block in row_blocks(*out.shape):
        chosen = rows.vectors[rows.slots[good[block]]]
        out[block] = prepare(chosen, job.metric)
        clock("validate", total + block.stop, 2 * total)
    out.flush()  # type: ignore[attr-defined]
    del out
    ids = rows.ids if good.shape[0] == total else [rows.ids[row] for row in good.tolist()]
    vectors = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    return _Valid(ids, vectors, Counts(len(ids), rows.tombstones, counts), quarantined)


def _quarantine(
    rows: Rows, codes: np.ndarray[tuple[int], np.dtype[np.int8]]
) -> tuple[dict[str, list[str]], dict[str, int]]:
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


def _matrix(job: ChildJob, vectors: Floats, built: BuiltIndex, clock: _Clock) -> Matrix:
    total, k = vectors.shape[0], job.parameters.matrix_k
    clock("matrix", 0, total)
    if total <= job.limits.matrix_exact_rows_max or built.index is None:
        return exact_matrix(vectors, job.metric, k, lambda done, of: clock("matrix", done, of))
    searcher = Searcher(vectors, job.metric, built.info, built.index, built.order, built.members)
    return index_matrix(vectors, searcher, k, lambda done, of: clock("matrix", done, of))


def _changes(job: ChildJob, valid: _Valid, matrix: Matrix, clock: _Clock) -> Changes | None:
    """What is other than in the version before, from its files."""
    if job.previous is None:
        return None
    clock("compare", 0, len(valid.ids))
    directory = Path(job.previous.directory)
    near = np.load(directory / files.NEIGHBORS, mmap_mode="r", allow_pickle=False)
    before = (job.previous.build_id, IdTable(directory / files.IDS), near)
    return changes(before, valid.ids, matrix.neighbors, lambda done, of: clock("compare", done, of))


def _write_files(
    directory: Path, valid: _Valid, built: BuiltIndex, matrix: Matrix, clock: _Clock
) -> dict[str, FileInfo]:
    """All but the manifest; their checksums are taken from what is on disk."""
    steps: dict[str, Callable[[Path], None]] = {
        files.IDS: lambda path: files.write_ids(path, valid.ids),
        files.NEIGHBORS: lambda path: files.write_array(path, matrix.neighbors),
        files.SCORES: lambda path: files.write_array(path, matrix.scores),
        files.PARQUET: lambda path: files.write_parquet(path, valid.ids, matrix),
        files.NPZ: lambda path: files.write_npz(path, valid.ids, matrix),
        files.REPORT: lambda path: files.write_bytes(
            path, msgspec.json.encode(BuildReport(valid.quarantined, built.trials))
        ),
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
    clock("files", 0, len(steps) + 1)
    written = {files.VECTORS: files.file_info(directory / files.VECTORS)}
    for name, write in steps.items():
        write(directory / name)
        written[name] = files.file_info(directory / name)
        clock("files", len(written), len(steps) + 1)
    return written


def _manifest(
    job: ChildJob,
    valid: _Valid,
    built: BuiltIndex,
    matrix: Matrix,
    written: dict[str, FileInfo],
    seconds: dict[str, float],
) -> Manifest:
    index = written.get(files.INDEX)
    info = msgspec.structs.replace(built.info, bytes=index.bytes if index else 0)
    return Manifest(
        model_version=job.model_version,
        build_id=job.build_id,
        epoch=job.epoch,
        generation=job.generation,
        built_at=job.built_at,
        watermark=job.watermark,
        dimension=job.dimension,
        metric=job.metric,
        counts=valid.counts,
        parameters=job.parameters,
        index=info,
        recall=built.recall,
        matrix=MatrixInfo(
            k=job.parameters.matrix_k,
            exact=matrix.exact,
            recall=1.0 if matrix.recall is None else matrix.recall,
        ),
        files=dict(sorted(written.items())),
        resident_bytes=sum(file.bytes for name, file in written.items() if name in MAPPED),
        software=Software(
            k9=job.k9_version, threads=thread_count(job.limits.threads), **software()
        ),
        stages=seconds,
        pulled_at=job.pulled_at,
        format=FORMAT_NEAR_COPIES if info.near_copies else FORMAT,
    )
