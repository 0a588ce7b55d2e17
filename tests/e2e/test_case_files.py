"""Files as people bring them, through the commands as they are run: what they say."""

import asyncio
import gzip
import json
import os
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from core.settings import Settings
from tests.e2e.commands import item_counts, run_k9, start_k9
from tests.emulators import create_tables, settings_for

CASES = Path(__file__).parents[1] / "cases"


@pytest.fixture
async def own_tables(ministack: str) -> Settings:
    """Tables on one emulator."""
    return await create_tables(settings_for(ministack))


async def _stored(settings: Settings, table: str = "embeddings") -> int:
    return (await item_counts(settings))[settings.table(table)]


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("a23_export.json.gz", 5),
        ("a29_meta_first.json", 5),
        ("a30_batch_write.json", 3),
        ("a31_get_item.json", 1),
    ],
)
async def test_files_of_dynamodb_are_migrated(
    name: str, stored: int, own_tables: Settings, tmp_path: Path
) -> None:
    """With nothing on standard error."""
    arguments = ("migrate", str(CASES / name), "--table", "embeddings")
    status, out, error = await run_k9(own_tables, tmp_path, *arguments)
    assert (status, error) == (0, "")
    assert out.startswith(f"embeddings: {stored} stored, 0 already there, 0 bad")
    assert await _stored(own_tables) == stored


async def test_doubles_without_a_dimension_are_not_stored(
    own_tables: Settings, tmp_path: Path
) -> None:
    """A wrong vector is worse than none."""
    arguments = ("migrate", str(CASES / "a32_float64_384.json"), "--table", "embeddings")
    status, _, error = await run_k9(own_tables, tmp_path, *arguments)
    assert status == 1
    assert error.splitlines()[-1] == "k9: embeddings: 0 stored, 0 already there, 40 bad"
    assert await _stored(own_tables) == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a13_zero_bytes.npz", "is empty"),
        ("a15_object.npz", "holds Python objects, which are never read"),
        ("a16_npy_named.npz", "is an .npy file"),
        ("a5_twice.parquet", "has 'vector' 2 times"),
        ("a7_binary_ids.parquet", "is of type binary"),
        (".", "is a directory; name one file in it"),
    ],
)
async def test_files_that_are_not_read_are_one_line(
    name: str, words: str, own_tables: Settings, tmp_path: Path
) -> None:
    """On standard error, and nothing is stored."""
    arguments = ("import", str(CASES / name), "--model", "m")
    status, out, error = await run_k9(own_tables, tmp_path, *arguments)
    assert (status, out, error.count("\n")) == (1, "", 1)
    assert error.startswith("k9: ")
    assert words in error
    assert await _stored(own_tables) == 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a20.jsonl.gz", ""),
        ("a20_utf16.jsonl", ""),
        ("a6_uuid.parquet", "'product_id' holds UUIDs, stored as text\n"),
        ("a8_int_ids.parquet", "'product_id' holds integers (int64), stored as text\n"),
    ],
)
@pytest.mark.parametrize("way", ["file", "pipe"])
async def test_files_of_vectors_are_imported(
    name: str, said: str, way: str, own_tables: Settings, tmp_path: Path
) -> None:
    """From a file or from standard input; what is converted is said."""
    file = str(CASES / name) if way == "file" else "-"
    with (CASES / name).open("rb") as data:
        process = await start_k9(own_tables, tmp_path, "import", file, "--model", "m", stdin=PIPE)
        out, error = await process.communicate(data.read() if way == "pipe" else None)
    shown = name if way == "file" else "standard input"
    assert process.returncode == 0
    assert error.decode() == (said and f"{shown}: {said}")
    assert out.startswith(b"10 embeddings of m stored")
    assert await _stored(own_tables) == 10


async def test_other_names_are_taken_by_their_options(own_tables: Settings, tmp_path: Path) -> None:
    """The message says which options; with them the file is read."""
    path = tmp_path / "export.jsonl"
    path.write_text('{"id": 7, "values": [1, 2]}\n{"id": "b", "values": [2, 1]}\n')
    arguments = ["import", str(path), "--model", "m"]
    status, _, error = await run_k9(own_tables, tmp_path, *arguments)
    assert status == 1
    options = error.strip().partition("say which it is by ")[2].split()
    assert options == ["--id-column", "id", "--vector-column", "values"]
    status, out, error = await run_k9(own_tables, tmp_path, *arguments, *options)
    assert (status, error) == (0, "export.jsonl: integer ids, as on line 1, are stored as text\n")
    assert out.startswith("2 embeddings")


async def test_a_users_file_comes_from_a_named_pipe(own_tables: Settings, tmp_path: Path) -> None:
    """As a shell's process substitution gives it."""
    os.mkfifo(tmp_path / "users")
    data = b'{"user_id": "a", "name": "A"}\n{"user_id": "b"}\n'
    writing = asyncio.create_task(asyncio.to_thread((tmp_path / "users").write_bytes, data))
    status, out, error = await run_k9(
        own_tables, tmp_path, "migrate", str(tmp_path / "users"), "--table", "users"
    )
    await writing
    assert (status, error) == (0, "")
    assert out.startswith("users: 2 stored")


async def test_rows_of_another_table_are_one_line(own_tables: Settings, tmp_path: Path) -> None:
    """However many there are, and nothing is stored."""
    path = CASES / "d1_one_bad_version.json"
    status, out, error = await run_k9(
        own_tables, tmp_path, "migrate", str(path), "--table", "reports"
    )
    assert (status, out, error.count("\n")) == (1, "", 1)
    words = "has no rows of the reports table (line 1: id is missing (it has 'user_id', 'name'))"
    assert words in error


async def test_deletions_of_an_export_are_said(own_tables: Settings, tmp_path: Path) -> None:
    """They are not carried out; the report names them."""
    key = {"id": {"S": "r1"}}
    row = {**key, "user_id": {"S": "u"}, "title": {"S": "T"}}
    lines = [{"Keys": key, "NewImage": row}, {"Keys": {"id": {"S": "r2"}}, "OldImage": row}]
    export = "".join(json.dumps(line) + "\n" for line in lines).encode()
    arguments = ("migrate", "-", "--table", "reports", "--report", "report.jsonl")
    (tmp_path / "report.jsonl").touch()
    process = await start_k9(own_tables, tmp_path, *arguments, stdin=PIPE)
    out, error = await process.communicate(gzip.compress(export))
    assert process.returncode == 0
    assert out.startswith(b"reports: 1 stored, 0 already there, 0 bad")
    assert error.startswith(b"left out: 1 deletions, which migrate does not carry out")
    report = json.loads((tmp_path / "report.jsonl").read_text())
    assert (report["outcome"], report["id"], report["line"]) == ("deletions", "r2", 2)
