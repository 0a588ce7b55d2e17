import base64
import os
from pathlib import Path

import pytest

from deploy.errors import CommandError
from deploy.local.files import DataDir, locked, make_private, read_stack


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
    with locked(tmp_path), pytest.raises(CommandError, match="already running"), locked(tmp_path):
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


def test_secrets_of_an_earlier_release_are_completed(tmp_path: Path) -> None:
    """Cursors and users of then go on, and what is new is made and stays."""
    data = DataDir(tmp_path / "data")
    data.create()
    (data.root / "secrets.json").write_text('{"cursor_key": "of then", "password": "too"}')
    made = data.secrets()
    assert (made.cursor_key, made.password) == ("of then", "too")
    assert made.access_key_id
    assert made.secret_access_key
    assert made.valkey_password
    assert data.secrets() == made
    assert (data.root / "secrets.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("left", [[], ["secrets.json", "aws"], ["lock"]])
def test_an_open_data_directory_is_made_private(tmp_path: Path, left: list[str]) -> None:
    """One that is empty, and one of an earlier run."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o755)
    for name in left:
        (tmp_path / "data" / name).write_text("{}")
    make_private(tmp_path / "data")
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_a_directory_of_other_files_is_left_as_it_is(tmp_path: Path) -> None:
    """It may be a project's or a home that others read; one that is private already will do."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(0o755)
    (tmp_path / "home" / "letter").write_text("")
    with pytest.raises(CommandError, match="holds other files"), locked(tmp_path / "home"):
        pass
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o755
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["letter"]
    (tmp_path / "home").chmod(0o700)
    make_private(tmp_path / "home")


def test_another_users_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever owns it could read all of it and put files of theirs in the place of ours."""
    (tmp_path / "data").mkdir()
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(CommandError, match="another user's"), locked(tmp_path / "data"):
        pass
    assert list((tmp_path / "data").iterdir()) == []


def test_another_users_stack_is_not_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a directory of theirs the commands would send rows and passwords where they say."""
    (tmp_path / "stack.json").write_text("{}")
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(CommandError, match="another user's"):
        read_stack(tmp_path)
