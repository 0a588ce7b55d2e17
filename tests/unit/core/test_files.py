"""Files are replaced whole, and locked against other processes."""

from pathlib import Path

import pytest

from core.files import file_lock, write_atomically


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    """A file has the new bytes, is its owner's alone, and nothing is left beside it."""
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_replacement_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    """A directory in its place cannot be replaced: no temporary file stays."""
    path = tmp_path / "file"
    (path / "entry").mkdir(parents=True)
    with pytest.raises(OSError, match="file"):
        write_atomically(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_an_exclusive_lock_has_one_holder(tmp_path: Path) -> None:
    """A second holder, shared or not, is refused until the first has let go."""
    path = tmp_path / "lock"
    with file_lock(path), pytest.raises(BlockingIOError), file_lock(path):
        pass
    shared = file_lock(path, shared=True)
    with shared, file_lock(path, shared=True), pytest.raises(BlockingIOError), file_lock(path):
        pass
    with file_lock(path, create=False):
        pass


def test_a_lock_file_can_be_required(tmp_path: Path) -> None:
    """Without `create`, a missing file is an error and stays missing."""
    path = tmp_path / "lock"
    with pytest.raises(FileNotFoundError), file_lock(path, create=False):
        pass
    assert not path.exists()
