"""Index versions on the local disk: what is removed with a model version, and what stays."""

import os
from pathlib import Path

from core.index import cache
from core.index.manifest import MANIFEST


def put(directory: Path, *, age_s: float = 0) -> Path:
    """A directory with a file in it, as a download leaves it."""
    directory.mkdir(parents=True)
    (directory / MANIFEST).write_bytes(b"{}")
    then = directory.stat().st_mtime - age_s
    os.utime(directory, (then, then))
    return directory


def test_a_cleared_model_version_leaves_nothing(tmp_path: Path) -> None:
    """Its versions go, and what is left of the download of a process that died."""
    put(tmp_path / "m" / "b-1.1")
    put(tmp_path / "m" / ".b-2.1.incoming", age_s=7200)
    assert cache.clear(tmp_path / "m")
    assert not (tmp_path / "m").exists()
    assert cache.clear(tmp_path / "m")


def test_what_is_in_use_is_cleared_later(tmp_path: Path) -> None:
    """A leased version stays until the lease ends, and a download that may still be going on."""
    mapped = put(tmp_path / "m" / "b-1.1")
    incoming = put(tmp_path / "m" / ".b-2.1.incoming", age_s=60)
    with cache.leased(mapped):
        assert not cache.clear(tmp_path / "m")
        assert (mapped / MANIFEST).exists()
    assert not cache.clear(tmp_path / "m")
    assert not mapped.exists()
    assert (incoming / MANIFEST).exists()
