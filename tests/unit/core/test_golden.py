"""Records and files that release 23e14f8 wrote are read as they were meant."""

from pathlib import Path

import msgspec
import pytest

from core.dynamo.wire import Item
from core.errors import Corrupt
from core.index.manifest import Manifest, decode_manifest
from core.models import BuildParameters
from core.repositories.build_rows import decode
from core.repositories.models import MODEL_CODEC
from core.versions import VersionRecord

GOLDEN = Path(__file__).parents[2] / "golden" / "23e14f8"
PUBLISHED = "01a21eb4605588e8af5df56c4ce282a7"


def item(name: str) -> Item:
    """A row, as DynamoDB gives it."""
    return msgspec.json.decode((GOLDEN / name).read_bytes(), type=Item)


def test_a_published_build_is_read() -> None:
    """Its files are where that release put them, and its manifest is known."""
    build = decode(item("build-published.json"))
    assert (build.build_id, build.status, build.fence) == (PUBLISHED, "published", 1)
    assert (build.prefix, build.removed_at, build.open) == (None, None, False)
    record = VersionRecord.of(build)
    assert record.prefix == f"indexes/minilm-l6-v2/{PUBLISHED}/1/"
    assert msgspec.convert(build.manifest, Manifest).counts.rows == 39


def test_a_running_build_is_read() -> None:
    """It can be claimed once its lease has run out."""
    build = decode(item("build-running.json"))
    assert (build.status, build.open, build.fence) == ("running", True, 1)
    assert build.parameters == BuildParameters(target_recall=0.9, force=True)
    assert (build.unreturned, build.faults, build.automatic) == (1, 0, False)


def test_a_verification_is_read() -> None:
    """A row of the builds table too."""
    build = decode(item("verification.json"))
    assert (build.verifies, build.model_version) == (PUBLISHED, "minilm-l6-v2")


def test_a_model_version_is_read() -> None:
    """What its first write fixed, and which build is current."""
    model = MODEL_CODEC.decode(item("model.json"))
    assert (model.model_version, model.dimension, model.metric) == ("minilm-l6-v2", 8, "cosine")
    assert (model.shards, model.epoch, model.pinned) == (8, 0, True)
    assert model.current_build_id is not None
    assert model.open_build_id == decode(item("build-running.json")).build_id


def test_a_manifest_is_read_and_is_the_one_in_the_record() -> None:
    """By its checksum, and by what the builds table says; any other is refused."""
    raw = (GOLDEN / "manifest.json").read_bytes()
    record = VersionRecord.of(decode(item("build-published.json")))
    manifest = record.check(raw)
    assert manifest == decode_manifest(raw)
    assert record.describes(manifest)
    assert (manifest.index.family, manifest.recall.value) == ("exact", 1.0)
    counts = msgspec.structs.replace(manifest.counts, tombstones=2)
    forged = msgspec.structs.replace(manifest, counts=counts)
    assert not record.describes(forged)
    with pytest.raises(Corrupt, match="not the one that the builds table has"):
        record.check(forged.encode())
