"""The process that does the heavy work of a build: `python -m worker.building.build_process FILE`.

It tells its progress as JSON lines on standard output, the last of which is its result:

    {"stage": "index", "done": 16384, "total": 100000}
    {"result": {"manifest": "…/manifest.json", "peak_bytes": …, "processor_s": …}}
    {"failed": {"kind": "RecallBelowTarget", "detail": "…", "recall": 0.91, "target": 0.95}}

Standard input must be a pipe that its parent holds open: where it ends, the parent is gone, and the
child ends too. This module imports neither numpy nor FAISS until a job runs.
"""

import os
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from core.errors import BuildFailed, Corrupt, EmptyModel, RecallBelowTarget
from core.models import BuildParameters, Family, Metric, Stage

EXIT_FAILED: Final = 1
EXIT_ORPHANED: Final = 3
_BYTES_A_KIB: Final = 1024

Report = Callable[[Stage, int, int], None]
"""Called with the stage, what is done and the total."""


class ChildLimits(msgspec.Struct, frozen=True):
    """What the build may use."""

    index_bytes_max: int = 4 * 1024**3
    matrix_exact_rows_max: int = 150_000
    threads: int = 0
    """0 is all the cores that this process may run on."""
    exact_numbers_max: int | None = None
    """Rows x dimension up to which no index is built; None leaves it to `IndexLimits`."""


class Previous(msgspec.Struct, frozen=True):
    """The version that the new one is compared with."""

    directory: str
    build_id: str


class ChildJob(msgspec.Struct, frozen=True):
    """One build: what it reads, where it writes, and what the manifest will say."""

    rows_dir: str
    """As a `RowWriter` left it."""
    out_dir: str
    """Made when it is missing; the version's files are written there."""
    model_version: str
    build_id: str
    epoch: int
    built_at: str
    watermark: str
    dimension: int
    metric: Metric
    parameters: BuildParameters = BuildParameters()
    family: Family | None = None
    """Forces one; None lets the rows decide."""
    limits: ChildLimits = ChildLimits()
    k9_version: str = "0"
    pulled_at: str = ""
    generation: int = 0
    previous: Previous | None = None


class ChildResult(msgspec.Struct, frozen=True):
    """How a build ended well."""

    manifest: str
    """Its path."""
    peak_bytes: int
    """Largest resident memory of the child, pages of mapped files among it."""
    processor_s: float


class ChildFailure(msgspec.Struct, frozen=True):
    """How a build that cannot succeed ended."""

    kind: str
    """The name of a class of `core.errors`, or of the system's error."""
    detail: str
    recall: float | None = None
    target: float | None = None
    passing: bool = False
    """Whether another try may succeed: a full disk, say."""


class ChildLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the child's output: progress, or one of the two ends."""

    stage: Stage | None = None
    done: int = 0
    total: int = 0
    result: ChildResult | None = None
    failed: ChildFailure | None = None


def run_job(job: ChildJob, report: Report) -> Any:
    """Makes a version's files in this process, and returns its `Manifest`.

    Raises:
        BuildFailed: when it cannot succeed as asked, with what to change.
        EmptyModel: when there is no row.
        Corrupt: when the pulled rows do not fit together.
    """
    from worker.building.stages import make_version  # noqa: PLC0415 - limits come before numpy

    return make_version(job, report)


def thread_count(asked: int) -> int:
    """Threads to use: as asked, or all the cores that this process may run on."""
    if asked:
        return asked
    allowed = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def main(arguments: list[str]) -> int:
    """Runs the job in the file named; the exit code is 0, or 1 where the build cannot succeed."""
    job = msgspec.json.decode(Path(arguments[0]).read_bytes(), type=ChildJob)
    output = _own_output()
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(thread_count(job.limits.threads))

    def say(line: ChildLine) -> None:
        output.write(msgspec.json.encode(line) + b"\n")
        output.flush()

    def report(stage: Stage, done: int, total: int) -> None:
        # Written out even where a number is 0, which the Struct would leave out.
        progress = {"stage": stage, "done": done, "total": total}
        output.write(msgspec.json.encode(progress) + b"\n")
        output.flush()

    try:
        run_job(job, report)
    except (BuildFailed, EmptyModel, Corrupt, OSError, MemoryError) as error:
        say(ChildLine(failed=_failure(error)))
        return EXIT_FAILED
    from core.index.manifest import MANIFEST  # noqa: PLC0415 - see run_job

    result = ChildResult(str(Path(job.out_dir) / MANIFEST), _peak_bytes(), time.process_time())
    say(ChildLine(result=result))
    return 0


def _failure(error: Exception) -> ChildFailure:
    kind, detail = type(error).__name__, str(error)
    if isinstance(error, OSError | MemoryError):
        what = getattr(error, "strerror", None) or "out of memory"
        traceback.print_exception(error)  # to standard error, which the worker logs
        return ChildFailure(kind, f"the system of the build's process says: {what}", passing=True)
    if isinstance(error, RecallBelowTarget):
        return ChildFailure(kind, detail, error.recall, error.target)
    return ChildFailure(kind, detail)


def _own_output() -> BinaryIO:
    """Standard output for the lines alone: what libraries print goes to standard error."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return output


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(EXIT_ORPHANED)


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * _BYTES_A_KIB


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
