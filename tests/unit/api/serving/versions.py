"""Small versions on disk."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np

from core.attributes.values import Attributes, encode_attributes
from core.index.attribute_rows import AttributesWriter
from core.index.manifest import Manifest
from core.index.rows import RowWriter
from core.models import (
    BuildParameters,
    Embedding,
    Family,
    Metric,
    Model,
    StoredAttributes,
    now,
    timestamp,
)
from core.vectors.arrays import Floats
from core.versions import VersionRecord
from tests.unit.building import build_here
from worker.building.launcher import thread_count
from worker.building.protocol import BuildSpec

DIMENSION = 4


def make(  # noqa: PLR0913 - what versions differ by
    directory: Path,
    build_id: str,
    ids: Sequence[str],
    *,
    epoch: int = 0,
    rows: Floats | None = None,
    metric: Metric = "cosine",
    watermark: str | None = None,
    family: Family | None = None,
    attributes: Mapping[str, Attributes] | None = None,
) -> Manifest:
    """A version of these products in `directory`, as a worker builds it."""
    moment = timestamp(now())
    random = np.random.default_rng(len(ids))
    writer = RowWriter(directory / "rows", DIMENSION)
    if rows is None:
        rows = random.normal(size=(len(ids), DIMENSION)).astype(np.float32)
    writer.append(
        [
            Embedding(product_id, "m", row.tobytes(), DIMENSION, moment)
            for product_id, row in zip(ids, rows, strict=True)
        ]
    )
    writer.close()
    with closing(AttributesWriter(directory / "rows")) as attributes_writer:
        attributes_writer.append(
            [
                StoredAttributes(product_id, encode_attributes(own), moment)
                for product_id, own in (attributes or {}).items()
            ]
        )
    spec = BuildSpec(
        rows_dir=str(directory / "rows"),
        out_dir=str(directory / "out"),
        model_version="m",
        dimension=DIMENSION,
        metric=metric,
        parameters=BuildParameters(matrix_k=3),
        family=family,
        threads=thread_count(0),
    )
    return build_here(spec, build_id=build_id, epoch=epoch, watermark=watermark or moment)


def model_of(build_id: str | None, *, fence: int = 1, epoch: int = 0) -> Model:
    """A model version whose current build it is."""
    return Model(
        "m",
        DIMENSION,
        "cosine",
        shards=1,
        created_at=timestamp(now()),
        current_build_id=build_id,
        current_fence=fence,
        epoch=epoch,
    )


def record_of(manifest: Manifest, prefix: str = "somewhere/", fence: int = 1) -> VersionRecord:
    """What the builds table says of a version."""
    contents = msgspec.json.decode(msgspec.json.encode(manifest))
    return VersionRecord(manifest.model_version, manifest.build_id, fence, prefix, contents)


def damaged(manifest: Manifest) -> Manifest:
    """A manifest that does not fit its files."""
    counts = msgspec.structs.replace(manifest.counts, rows=manifest.counts.rows + 1)
    return msgspec.structs.replace(manifest, counts=counts)
