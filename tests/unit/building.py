"""A version built in this process, as a worker builds it in another."""

from pathlib import Path

from core.index.manifest import MANIFEST, Manifest, RecentRows
from core.models import Build, Model
from worker.building.builder import BuildResult, PullResult, assemble_manifest
from worker.building.protocol import BuildOutput, BuildSpec
from worker.building.stages import build_version

AT = "2025-01-01T00:00:00.000000Z"


def build_here(
    spec: BuildSpec, *, build_id: str = "b", epoch: int = 0, watermark: str = AT
) -> Manifest:
    """Writes the version's files and its manifest."""
    output = build_version(spec, lambda _progress: None)
    return describe(spec, output, build_id=build_id, epoch=epoch, watermark=watermark)


def describe(
    spec: BuildSpec,
    output: BuildOutput,
    *,
    build_id: str = "b",
    epoch: int = 0,
    watermark: str = AT,
) -> Manifest:
    """Writes the manifest of a version that was built."""
    directory = Path(spec.out_dir)
    manifest = assemble_manifest(
        Build(build_id, spec.model_version, "running", AT, spec.parameters),
        Model(spec.model_version, spec.dimension, spec.metric, 1, AT, epoch),
        PullResult(Path(spec.rows_dir), watermark, "", 0.0, RecentRows(watermark, 0, "")),
        BuildResult(directory, AT, output),
        output.files,
    )
    (directory / MANIFEST).write_bytes(manifest.encode())
    return manifest
