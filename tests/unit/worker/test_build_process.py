import json
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from core.errors import BuildFailed, EmptyModel
from core.index.files import file_info
from core.index.manifest import FileInfo
from core.index.rows import RowWriter
from core.index.version import MappedVersion, verify_files
from core.models import BuildParameters, Embedding, Metric, Progress
from tests.unit.building import build_here
from worker.building.build_process import EXIT_FAILED, EXIT_ORPHANED
from worker.building.launcher import thread_count
from worker.building.protocol import BuildSpec, Message
from worker.building.stages import build_version

ROOT = Path(__file__).parents[3]
AT = "2025-01-01T00:00:00Z"


def embedding(product_id: str, values: list[float]) -> Embedding:
    """A row as the pull hands it over."""
    data = np.array(values, np.float64).astype(np.float32).tobytes()
    return Embedding(product_id, "m", data, len(values), AT)


def random_rows(count: int, dimension: int = 8) -> list[Embedding]:
    """Rows without any structure."""
    made = np.random.default_rng(0).standard_normal((count, dimension))
    return [embedding(f"p{number:05}", made[number].tolist()) for number in range(count)]


def spec_of(directory: Path, rows: list[Embedding], **changes: Any) -> BuildSpec:
    """What to build from these rows, which are written to disk."""
    with closing(RowWriter(directory / "rows", 8)) as writer:
        writer.append(rows)
    made = BuildSpec(
        rows_dir=str(directory / "rows"),
        out_dir=str(directory / "out"),
        model_version="m",
        dimension=8,
        metric="cosine",
        parameters=BuildParameters(matrix_k=3),
    )
    return msgspec.structs.replace(made, **changes)


def spawn(directory: Path, made: BuildSpec) -> subprocess.Popen[bytes]:
    """The build process as a worker starts it."""
    path = directory / "spec.json"
    path.write_bytes(msgspec.json.encode(made))
    return subprocess.Popen(
        [sys.executable, "-m", "worker.building.build_process", str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def verify_written(directory: Path, written: dict[str, FileInfo]) -> None:
    """Checks that these files are on disk, and no other."""
    found = {path.name: file_info(path) for path in directory.iterdir()}
    assert found == written


def test_bad_rows_are_left_out_counted_and_named(tmp_path: Path) -> None:
    """They fail no build, and the report says which they were and why."""
    with np.errstate(over="ignore"):
        bad = [
            embedding("nan", [np.nan] * 8),
            embedding("zero", [0.0] * 8),
            embedding("huge", [1e39] * 8),
            embedding("short", [1.0] * 7),
        ]
    gone = Embedding("gone", "m", None, 0, AT, deleted_at=AT)
    made = spec_of(tmp_path, [*random_rows(50), *bad, gone])
    manifest = build_here(made)
    wanted = {"not_finite": 2, "zero_norm": 1, "wrong_dimension": 1}
    assert manifest.counts.quarantined == wanted
    assert (manifest.counts.rows, manifest.counts.tombstones) == (50, 1)
    report = json.loads((tmp_path / "out/report.json").read_bytes())
    assert report["quarantined"]["not_finite"] == ["huge", "nan"]
    opened = MappedVersion.open(tmp_path / "out", manifest)
    assert opened.ids.row_of("nan") is None
    assert opened.ids.row_of("p00007") == 7


def test_at_most_a_hundred_ids_are_named(tmp_path: Path) -> None:
    """A report stays readable when a whole catalogue is bad."""
    zeros = [embedding(f"zero{number:03}", [0.0] * 8) for number in range(150)]
    output = build_version(spec_of(tmp_path, [*zeros, *random_rows(1)]), lambda _: None)
    report = json.loads((tmp_path / "out/report.json").read_bytes())
    assert output.counts.quarantined == {"zero_norm": 150}
    assert len(report["quarantined"]["zero_norm"]) == 100


def test_no_valid_row_is_told_clearly(tmp_path: Path) -> None:
    """The reasons are counted in the error."""
    made = spec_of(tmp_path, [embedding("a", [0.0] * 8), embedding("b", [1.0])])
    with pytest.raises(BuildFailed, match="1 zero_norm, 1 wrong_dimension"):
        build_version(made, lambda _: None)


def test_no_row_at_all_is_an_empty_model(tmp_path: Path) -> None:
    """Tombstones are no rows."""
    gone = Embedding("gone", "m", None, 0, AT, deleted_at=AT)
    with pytest.raises(EmptyModel):
        build_version(spec_of(tmp_path, [gone]), lambda _: None)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_tiny_models_are_built(tmp_path: Path, metric: Metric, count: int) -> None:
    """One product has no neighbours, and is a version all the same."""
    manifest = build_here(spec_of(tmp_path, random_rows(count), metric=metric))
    verify_files(tmp_path / "out", manifest)
    opened = MappedVersion.open(tmp_path / "out", manifest)
    there = opened.neighbors[0] >= 0
    assert np.count_nonzero(there) == count - 1
    assert np.isneginf(opened.scores[0, ~there]).all()


def test_stages_come_in_order(tmp_path: Path) -> None:
    """Each stage counts up to its total, and has its seconds in the output."""
    reported: list[Progress] = []
    made = spec_of(tmp_path, random_rows(300), family="hnsw_flat", metric="l2")
    output = build_version(made, reported.append)
    stages = list(dict.fromkeys(progress.stage for progress in reported))
    assert set(stages) == {"validate", "index", "recall", "matrix", "files"}
    assert stages == ["validate", "index", "recall", "matrix", "files"]
    assert all(progress.done <= progress.total for progress in reported)
    assert set(output.stages) == set(stages)


def test_the_process_sends_its_progress_and_output(tmp_path: Path) -> None:
    """Lines of JSON on standard output, the last one the output, and exit code 0."""
    child = spawn(tmp_path, spec_of(tmp_path, random_rows(300)))
    assert child.stdout is not None
    first, *_, last = [msgspec.json.decode(line, type=Message) for line in child.stdout]
    assert child.wait(30) == 0
    assert first == Message(progress=Progress("validate"))
    assert last.output is not None
    verify_written(tmp_path / "out", last.output.files)
    assert last.output.usage.peak_bytes > 10_000_000
    assert last.output.usage.processor_s > 0
    child.communicate()


def test_the_memory_of_the_worker_is_not_the_build_processs(tmp_path: Path) -> None:
    """A worker may have had more than the process that it starts."""
    held = np.ones(500_000_000, np.uint8)
    child = spawn(tmp_path, spec_of(tmp_path, random_rows(300)))
    assert child.stdout is not None
    *_, last = [msgspec.json.decode(line, type=Message) for line in child.stdout]
    assert last.output is not None
    assert last.output.usage.peak_bytes < held.nbytes
    child.communicate()


def test_a_build_that_cannot_succeed_ends_with_its_reason(tmp_path: Path) -> None:
    """The recall that was reached and the target are in the last line, and exit code 1."""
    parameters = BuildParameters(target_recall=1.0, matrix_k=3)
    made = spec_of(tmp_path, random_rows(400), parameters=parameters, family="hnsw_flat")
    child = spawn(tmp_path, made)
    assert child.stdout is not None
    failure = msgspec.json.decode(list(child.stdout)[-1], type=Message).failure
    assert child.wait(30) == EXIT_FAILED
    child.communicate()
    assert failure is not None
    for words in ("recall@10 of ", "the target of 1.0", "lower target_recall"):
        assert words in failure.detail
    assert not failure.transient


def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    """When the parent's end of the pipe is gone, the process is too, whatever it was doing."""
    path = tmp_path / "spec.json"
    os.mkfifo(path)
    child = subprocess.Popen(
        [sys.executable, "-m", "worker.building.build_process", str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    rows = random_rows(6000)
    made = spec_of(tmp_path, rows, family="hnsw_flat")
    path.write_bytes(msgspec.json.encode(made))
    assert child.stdout is not None
    assert child.stdin is not None
    child.stdout.readline()
    started = time.monotonic()
    child.stdin.close()
    assert child.wait(10) == EXIT_ORPHANED
    assert time.monotonic() - started < 5
    child.stdout.close()


def test_threads_are_as_asked_or_all() -> None:
    """0 stands for every core that the process may use."""
    assert thread_count(3) == 3
    assert 1 <= thread_count(0) <= (os.cpu_count() or 1)
