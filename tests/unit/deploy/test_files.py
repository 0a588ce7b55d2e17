import base64
from pathlib import Path

import pytest

from deploy.errors import CommandError
from deploy.local.files import DataDir, locked


def test_secrets_are_made_once(tmp_path: Path) -> None:
    """Cursors and users live over a restart, and only their owner reads the file."""
    data = DataDir(tmp_path / "data")
    data.create()
    first = data.secrets()
    assert len(base64.b64decode(first.cursor_key)) == 32
    assert DataDir(tmp_path / "data").secrets() == first
    assert (tmp_path / "data" / "secrets.json").stat().st_mode & 0o777 == 0o600


def test_a_directory_takes_one_at_a_time(tmp_path: Path) -> None:
    """The second is told who holds it; after the first has gone it is free again."""
    with locked(tmp_path), pytest.raises(CommandError, match="runs already"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_three_logs_are_kept(tmp_path: Path) -> None:
    """Each start has a log of its own, and the oldest goes."""
    data = DataDir(tmp_path)
    data.create()
    for number in range(6):
        data.log("api").write_text(str(number))
    kept = {path.name: path.read_text() for path in data.logs.iterdir()}
    assert kept == {"api.log": "5", "api.log.1": "4", "api.log.2": "3", "api.log.3": "2"}


def test_a_file_in_the_way_is_one_line(tmp_path: Path) -> None:
    """The data directory cannot be where a file is."""
    (tmp_path / "data").write_text("")
    with pytest.raises(CommandError, match="cannot be used"):
        DataDir(tmp_path / "data").create()
