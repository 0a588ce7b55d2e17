"""What a worker and the process that builds a version tell each other.

The worker writes a `BuildSpec` to a file. The process answers with JSON lines on standard output:
its progress, and last either what it made or why it failed.

    {"progress": {"stage": "index", "done": 16384, "total": 100000}}
    {"output": {"counts": {"rows": 100000, …}, "files": {…}, …}}
    {"failure": {"detail": "recall@10 of 0.9100 …", "transient": false}}

Both ends are always of one release.
"""

import msgspec

from core.index.manifest import Counts, FileInfo, MatrixInfo, Software
from core.models import BuildParameters, Family, Metric, Progress
from core.vectors.changes import Changes
from core.vectors.parameters import IndexInfo, IndexLimits, Recall, RecallBand


class PreviousVersion(msgspec.Struct, frozen=True):
    """The version that the new one is compared with."""

    directory: str
    build_id: str


class BuildSpec(msgspec.Struct, frozen=True):
    """What to build, from which rows, and where to."""

    rows_dir: str
    """As a `RowWriter` left it, and an `AttributesWriter` where the model has attributes."""
    out_dir: str
    """Created when it is missing; the version's files are written there."""
    model_version: str
    dimension: int
    metric: Metric
    threads: int = 1
    parameters: BuildParameters = BuildParameters()
    family: Family | None = None
    """Forces an index family; None lets the rows decide."""
    index_limits: IndexLimits = IndexLimits()
    columns_bytes_max: int = 1024**3
    matrix_exact_rows_max: int = 150_000
    previous: PreviousVersion | None = None
    columns_only: bool = False
    """Whether the files and the manifest of a version are in `out_dir`, of which only the columns
    are built anew."""


class Usage(msgspec.Struct, frozen=True):
    """What the process used."""

    processor_s: float = 0.0
    peak_bytes: int = 0
    """Largest resident memory, pages of mapped files included."""


class BuildOutput(msgspec.Struct, frozen=True):
    """What the process made and measured. The version's files are in `BuildSpec.out_dir`."""

    counts: Counts
    index: IndexInfo
    recall: Recall
    filtered_recall: tuple[RecallBand, ...]
    matrix: MatrixInfo
    files: dict[str, FileInfo]
    """By name, in ascending order."""
    software: Software
    stages: dict[str, float]
    """Stage → seconds."""
    changes: Changes | None = None
    """Against `BuildSpec.previous`; None without one."""
    rows_with_attributes: int = 0
    reused_build_id: str | None = None
    """Of the build whose files these are, but for the columns."""
    usage: Usage = Usage()


class BuildFailure(msgspec.Struct, frozen=True):
    """Why there is no version."""

    detail: str
    transient: bool = False
    """Whether another attempt may succeed, as after a full disk."""


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the process's output; exactly one of the three is set."""

    progress: Progress | None = None
    output: BuildOutput | None = None
    failure: BuildFailure | None = None
