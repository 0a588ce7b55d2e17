import gzip
import threading
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from core.dynamo.wire import Item, item_of
from core.embedding_files.file_input import FREE_BYTES
from core.errors import FileError
from core.files import size_and_digest
from core.settings import Files
from deploy.data.archive import (
    MANIFEST,
    FileEntry,
    Manifest,
    SegmentFile,
    TableEntry,
    check_file,
    finish,
    open_backup,
    read_file,
    read_manifest,
)
from deploy.errors import CommandError

LIMITS = Files()
ITEMS: list[Item] = [
    item_of({"id": {"S": ""}, "n": {"N": "1E+2"}, "b": {"B": b"\x00\xff"}, "e": {"B": b""}}),
    item_of({"l": {"L": []}, "m": {"M": {"": {"NULL": True}}}, "f": {"BOOL": False}}),
    item_of({"ss": {"SS": ["é", "\n"]}, "ns": {"NS": ["1", "0.10"]}, "bs": {"BS": [b"", b"x"]}}),
]


def _written(directory: Path, items: list[Item]) -> FileEntry:
    file = SegmentFile(directory / "users.000.jsonl.gz")
    for item in items:
        file.write([item])
    entry = file.close()
    assert entry is not None
    return entry


def _verify(directory: Path, manifest: Manifest) -> None:
    for table in manifest.tables.values():
        for file in table.files:
            check_file(directory, file, LIMITS)


def _blocks(directory: Path, table: TableEntry, block_items: int) -> list[list[Item]]:
    return [b for file in table.files for b in read_file(directory, file, block_items, LIMITS)]


def _manifest(*files: FileEntry) -> Manifest:
    table = TableEntry("k9-users-dev", sum(file.items for file in files), list(files))
    return Manifest("0", "dev", "then", "now", {"users": table})


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """A backup of one file."""
    with open_backup(tmp_path / "b"):
        finish(tmp_path / "b", _manifest(_written(tmp_path / "b", ITEMS)))
    return tmp_path / "b"


def test_items_of_all_types_come_back(backup: Path) -> None:
    """With empty texts, exact numbers and bytes; and nobody but the owner may read them."""
    manifest = read_manifest(backup)
    _verify(backup, manifest)
    assert manifest.items == 3
    assert _blocks(backup, manifest.tables["users"], 2) == [ITEMS[:2], ITEMS[2:]]
    assert (backup / "users.000.jsonl.gz").stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in backup.iterdir()) == [MANIFEST, "users.000.jsonl.gz"]


def test_a_segment_without_items_has_no_file(tmp_path: Path) -> None:
    """Small tables make no heap of empty files."""
    file = SegmentFile(tmp_path / "a")
    file.write([])
    assert file.close() is None
    assert not (tmp_path / "a").exists()


def test_a_flipped_bit_is_found(backup: Path) -> None:
    """Wherever it is: in a file or in the manifest."""
    path = backup / "users.000.jsonl.gz"
    data = bytearray(path.read_bytes())
    data[4] ^= 1  # the time in the header: gzip itself would not mind
    path.write_bytes(data)
    with pytest.raises(CommandError, match="is damaged"):
        _verify(backup, read_manifest(backup))
    text = (backup / MANIFEST).read_text()
    (backup / MANIFEST).write_text(text.replace('"items": 3', '"items": 2'))
    with pytest.raises(CommandError, match="was changed"):
        read_manifest(backup)
    (backup / MANIFEST).write_text(text[:-20])
    with pytest.raises(CommandError, match="is not valid"):
        read_manifest(backup)


def test_a_file_that_is_gone_or_elsewhere_is_said(backup: Path) -> None:
    """A manifest may name nothing outside of its directory."""
    manifest = read_manifest(backup)
    entry = manifest.tables["users"].files[0]
    (backup / entry.name).unlink()
    with pytest.raises(CommandError, match="is missing"):
        _verify(backup, manifest)
    outside = msgspec.structs.replace(entry, name="../users.000.jsonl.gz")
    with pytest.raises(CommandError, match="is missing"):
        _verify(backup, _manifest(outside))


def test_another_number_of_items_is_said(backup: Path) -> None:
    """Even where the checksums hold."""
    table = read_manifest(backup).tables["users"]
    more = msgspec.structs.replace(
        table, files=[msgspec.structs.replace(file, items=4) for file in table.files]
    )
    with pytest.raises(CommandError, match="has 3 items, and should have 4"):
        _blocks(backup, more, 10)
    (backup / "users.000.jsonl.gz").write_bytes(gzip.compress(b"{}")[:-9])
    with pytest.raises(FileError, match="gzip data is damaged or truncated"):
        _blocks(backup, table, 10)


def _bomb(path: Path, data: bytes, times: int) -> FileEntry:
    """A file that decodes to far more than it has, with an entry that matches it."""
    with gzip.open(path, "wb") as file:
        for _ in range(times):
            file.write(data)
    return FileEntry(path.name, times, *size_and_digest(path))


@pytest.mark.parametrize(
    ("data", "times", "words"),
    [
        (b" " * 2**20, 17, "line 1 is longer than 16,777,216 bytes, more than any DynamoDB item"),
        (b" " * 2**20 + b"\n", FREE_BYTES // 2**20 + 1, "K9_FILE_EXPANSION_MAX"),
    ],
)
def test_a_bomb_is_found_before_anything_is_written(
    data: bytes, times: int, words: str, tmp_path: Path
) -> None:
    """Its checksums hold: who can change the files can change the manifest."""
    entry = _bomb(tmp_path / "users.000.jsonl.gz", data, times)
    with pytest.raises((CommandError, FileError)) as refused:
        _verify(tmp_path, _manifest(entry))
    assert words in str(refused.value)


def test_a_wrong_number_of_items_is_found_before_anything_is_written(backup: Path) -> None:
    """By the check that comes first."""
    table = read_manifest(backup).tables["users"]
    manifest = _manifest(*(msgspec.structs.replace(file, items=4) for file in table.files))
    with pytest.raises(CommandError, match="has 3 items, and should have 4"):
        _verify(backup, manifest)


def test_blocks_of_large_items_are_short(tmp_path: Path) -> None:
    """Memory is bounded by bytes, not by their number."""
    item: Item = item_of({"id": {"S": "x" * 2**20}})
    table = _manifest(_written(tmp_path, [item] * 40)).tables["users"]
    sizes = [len(block) for block in _blocks(tmp_path, table, 500)]
    assert sum(sizes) == 40
    assert max(sizes) == 16


def test_a_directory_with_something_in_it_is_refused(backup: Path, tmp_path: Path) -> None:
    """A finished backup too; nothing in it is touched."""
    before = {path: path.read_bytes() for path in backup.iterdir()}
    with pytest.raises(CommandError, match="is not empty"), open_backup(backup):
        pytest.fail("never")
    assert {path: path.read_bytes() for path in backup.iterdir()} == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "incomplete").touch()
    (tmp_path / "other" / "diary.txt").touch()
    with (
        pytest.raises(CommandError, match=r"is not empty \('diary.txt'"),
        open_backup(tmp_path / "other"),
    ):
        pytest.fail("never")


def test_an_interrupted_backup_is_begun_anew(tmp_path: Path) -> None:
    """What it left is neither restored nor in the way."""
    with suppress(KeyboardInterrupt), open_backup(tmp_path / "b"):
        _written(tmp_path / "b", ITEMS)
        raise KeyboardInterrupt
    with pytest.raises(CommandError, match="has an interrupted backup"):
        read_manifest(tmp_path / "b")
    with open_backup(tmp_path / "b"):
        finish(tmp_path / "b", _manifest(_written(tmp_path / "b", ITEMS[:1])))
    assert read_manifest(tmp_path / "b").items == 1


def test_two_backups_do_not_share_a_directory(tmp_path: Path) -> None:
    """The second is refused, and the first goes on."""
    said = []

    def second() -> None:
        try:
            with open_backup(tmp_path / "b"):
                said.append("in")
        except CommandError as error:
            said.append(str(error))

    with open_backup(tmp_path / "b"):
        _written(tmp_path / "b", ITEMS)
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert (tmp_path / "b" / "users.000.jsonl.gz").exists()
    assert len(said) == 1
    assert "another backup" in said[0]


def test_no_directory_at_all_is_said(tmp_path: Path) -> None:
    """As one line."""
    with pytest.raises(CommandError, match="has no backup"):
        read_manifest(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match="File exists"), open_backup(tmp_path / "file"):
        pytest.fail("never")


def test_a_backup_of_a_later_release_is_refused_as_such(backup: Path) -> None:
    """Whatever else is in its manifest; the line has both numbers and what to do."""
    path = backup / MANIFEST
    later = msgspec.json.decode(path.read_bytes()) | {"format": 2}
    for fields in (later, {"format": 2, "tables": []}):
        path.write_bytes(msgspec.json.encode(fields))
        with pytest.raises(CommandError, match=r"format 2, .* up to 1: .* Upgrade"):
            read_manifest(backup)
