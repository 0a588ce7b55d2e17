"""A version's files exchanged for others that fit together: manifest, checksums and all."""

import tempfile
from pathlib import Path

import msgspec
import numpy as np

from core.index.files import VECTORS, file_info
from core.index.manifest import MANIFEST, Manifest, decode_manifest
from core.object_store import ObjectStore


def forged(directory: Path, manifest: Manifest) -> Manifest:
    """Gives every product of a version on disk another vector; the manifest made to match."""
    path = directory / VECTORS
    vectors = np.load(path, allow_pickle=False)
    path.unlink()  # a process may have the true one mapped
    with path.open("wb") as file:
        np.save(file, np.ascontiguousarray(vectors[::-1]), allow_pickle=False)
    files = {**manifest.files, VECTORS: file_info(path)}
    other = msgspec.structs.replace(manifest, files=files)
    (directory / MANIFEST).write_bytes(other.encode())
    return other


async def forge(objects: ObjectStore, prefix: str) -> dict[str, bytes]:
    """Does so in S3; the true objects, by key."""
    true = {
        prefix + name: await objects.get_bytes(prefix + name, 1 << 24)
        for name in (VECTORS, MANIFEST)
    }
    with tempfile.TemporaryDirectory(prefix="k9-forged-") as name:
        directory = Path(name)
        (directory / VECTORS).write_bytes(true[prefix + VECTORS])
        forged(directory, decode_manifest(true[prefix + MANIFEST]))
        for key in true:
            await replace_object(objects, key, directory / key.removeprefix(prefix))
    return true


async def mend(objects: ObjectStore, true: dict[str, bytes]) -> None:
    """Puts back what was there."""
    for key, data in true.items():
        await replace_object(objects, key, data)


async def replace_object(objects: ObjectStore, key: str, source: Path | bytes) -> None:
    """Puts other bytes under a key, which K9 itself never does."""
    await objects.delete([key])
    await objects.put(key, source)
