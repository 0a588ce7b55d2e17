"""Existing data into the tables: all that holds is there, once, and what does not is named."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.dynamo.wire import Item, item_of
from core.embedding_files.file_input import open_input
from core.errors import FileError, TableMissing
from core.models import now, timestamp
from core.resources import Resources, open_resources
from core.settings import Settings
from deploy.data.bulk import put_batch, scan_segment
from deploy.data.migration.migrate import EntryResult, Migrated, migrate_file
from tests.e2e.commands import item_counts, kill, run_k9, start_k9
from tests.emulators import create_tables, settings_for

_OLD = "2024-05-01T10:00:00"


@pytest.fixture
async def own(ministack: str) -> Settings:
    """Tables of a test's own, where conditional writes hold under concurrency."""
    return await create_tables(settings_for(ministack))


def _user(number: int, **more: Any) -> dict[str, Any]:
    return {
        "user_id": f"u{number}",
        "name": f"Name {number}",
        "email": f"u{number}@example.com",
        "avatar_url": "https://example.com/a.png",
        "preferences": {"n": number, "big": 2**70, "f": 1.0, "": [[], {}, ""]},
        "created_at": _OLD,
        "updated_at": "2024-06-01T10:00:00Z",
        **more,
    }


def _report(number: int, **more: Any) -> dict[str, Any]:
    return {
        "id": f"6f1d0e9c-{number:04}",
        "user_id": f"u{number % 3}",
        "title": f"Report {number}",
        "author": "Ada",
        "date": "2024-05-01",
        "reference": "r",
        "favorites": ["b", "a"],
        "created_at": f"2024-05-01T10:00:{number % 60:02}",
        "updated_at": _OLD,
        **more,
    }


def _embedding(number: int, **more: Any) -> dict[str, Any]:
    return {
        "product_id": f"p/{number} é",
        "model_version": "m1",
        "embedding_vector": [0.1 + number, -1e-40, 3],
        "vector_dimension": 3,
        "created_at": _OLD,
        **more,
    }


def _typed(value: Any) -> dict[str, Any]:
    """A value in DynamoDB's JSON."""
    if isinstance(value, str):
        return {"S": value}
    if isinstance(value, dict):
        return {"M": {name: _typed(part) for name, part in value.items()}}
    if isinstance(value, list):
        return {"L": [_typed(part) for part in value]}
    return {"N": repr(value)}


def _array(path: Path, rows: list[Any]) -> Path:
    path.write_text(json.dumps(rows, indent=2))
    return path


def _lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _scan(path: Path, rows: list[Any]) -> Path:
    items = [{name: _typed(value) for name, value in row.items()} for row in rows]
    path.write_text(json.dumps({"Items": items, "Count": len(items)}, indent=4))
    return path


async def _migrate(
    resources: Resources, path: Path, table: Any, **more: Any
) -> tuple[Migrated, list[EntryResult]]:
    results: list[EntryResult] = []
    with open_input(path, resources.settings.files) as file:
        done = await migrate_file(resources, file, table, on_entry=results.append, **more)
    return done, results


async def _items(resources: Resources, table: str) -> list[Item]:
    name = resources.settings.table(table)
    return [item async for page in scan_segment(resources.dynamo, name, 0, 1) for item in page]


@pytest.mark.parametrize("form", [_array, _lines, _scan])
async def test_users_and_reports_become_todays_rows(
    own: Settings, form: Any, tmp_path: Path
) -> None:
    """From every form of file; a second run changes nothing."""
    users, reports = [_user(n) for n in range(30)], [_report(n) for n in range(30)]
    async with open_resources(own) as resources:
        for expected in (Migrated(30, 0, 0), Migrated(0, 30, 0)):
            done, _ = await _migrate(resources, form(tmp_path / "u.json", users), "users")
            assert done == expected
            done, _ = await _migrate(resources, form(tmp_path / "r.json", reports), "reports")
            assert done == expected
        user = await resources.users.get_user("u7")
        listed, _ = await resources.reports.list_reports("u1", limit=100)
        report = await resources.reports.get_report("6f1d0e9c-0007", "u1")
    assert json.loads(user.preferences) == users[7]["preferences"]
    assert '"big":1180591620717411303424' in user.preferences.replace(" ", "")
    assert (user.name, user.email) == ("Name 7", "u7@example.com")
    assert user.created_at == "2024-05-01T10:00:00.000000Z"
    assert user.updated_at == "2024-06-01T10:00:00.000000Z"
    assert [entry.id for entry in listed] == [f"6f1d0e9c-{n:04}" for n in range(28, 0, -3)]
    assert (report.title, report.favorites, report.date) == ("Report 7", ("b", "a"), "2024-05-01")


@pytest.mark.parametrize("form", [_array, _lines, _scan])
async def test_lists_of_numbers_become_binary(own: Settings, form: Any, tmp_path: Path) -> None:
    """The model version is made as by a first write; rows count as new, and keep their age."""
    began = timestamp(now())
    rows = [_embedding(n) for n in range(40)] + [_embedding(0, model_version="m2")]
    async with open_resources(own) as resources:
        for expected in (Migrated(41, 0, 0), Migrated(0, 41, 0)):
            done, _ = await _migrate(resources, form(tmp_path / "e.json", rows), "embeddings")
            assert done == expected
        model = await resources.models.get_model("m1")
        pages = [page async for page in resources.embeddings.get_embeddings_by_model(model)]
        items = {item["product_id"].S: item for item in await _items(resources, "embeddings")}
    assert (model.dimension, model.metric, model.shards) == (3, "cosine", 8)
    found = {row.product_id: row for page in pages for row in page}
    assert len(found) == 40
    assert found["p/7 é"].vector == np.array([7.1, -1e-40, 3], "<f4").tobytes()
    assert found["p/7 é"].updated_at >= began
    assert items["p/7 é"]["created_at"].S == "2024-05-01T10:00:00.000000Z"


async def test_bad_entries_are_named_and_lose_no_other(own: Settings, tmp_path: Path) -> None:
    """By line and with the reason, whether the file or the tables' rules tell it."""
    rows: list[Any] = [_embedding(n) for n in range(60)]
    rows[5] = {**rows[5], "embedding_vector": [0, 0, 0]}
    rows[20] = {**rows[20], "embedding_vector": [1, 2], "vector_dimension": 2}
    rows[21] = {**rows[21], "embedding_vector": [1e39, 1, 1]}
    rows[22] = {**rows[22], "product_id": ".."}
    rows[50] = rows[3]
    path = _lines(tmp_path / "e.json", rows)
    broken = path.read_text().splitlines()
    broken[30] = broken[30][:-9]
    path.write_text("\n".join(broken))
    async with open_resources(own) as resources:
        done, results = await _migrate(resources, path, "embeddings")
    assert done == Migrated(54, 0, 6)
    reasons = {entry.line: entry.reason or "" for entry in results if entry.outcome == "bad"}
    assert {line: words for line, words in reasons.items() if not words} == {}
    assert sorted(reasons) == [6, 21, 22, 23, 31, 51]
    assert "norm 0" in reasons[6]
    assert "has 2 numbers, the model version has 3" in reasons[21]
    assert "not finite" in reasons[22]
    assert "came before" in reasons[51]


async def test_what_is_newer_stays(own: Settings, tmp_path: Path) -> None:
    """A row that changed since is left alone; an older one is replaced, with another version."""
    path = tmp_path / "data.json"
    async with open_resources(own) as resources:
        await _migrate(resources, _array(path, [_report(n) for n in range(3)]), "reports")
        changed = await resources.report_service.change("6f1d0e9c-0001", "u1", {"title": "Mine"})
        newer = [
            _report(0, user_id="u9"),
            _report(1, updated_at="2024-07-01T00:00:00Z"),
            _report(2, updated_at="2024-07-01T00:00:00Z", title="Newer"),
        ]
        done, results = await _migrate(resources, _array(path, newer), "reports")
        assert done == Migrated(1, 1, 1)
        assert [entry.reason for entry in results if entry.reason] == [
            "another user has a report of this id"
        ]
        assert await resources.reports.get_report("6f1d0e9c-0001", "u1") == changed
        replaced = await resources.reports.get_report("6f1d0e9c-0002", "u2")
        assert (replaced.title, replaced.version) == ("Newer", 2)

        await _migrate(resources, _array(path, [_embedding(n) for n in range(3)]), "embeddings")
        await resources.embedding_service.delete_embedding("m1", "p/0 é")
        await resources.embedding_service.store_embedding("m1", "p/1 é", np.ones(3, np.float32))
        later = [
            _embedding(n, created_at="2024-08-01", embedding_vector=[9, 9, 9]) for n in range(3)
        ]
        done, _ = await _migrate(resources, _array(path, later), "embeddings")
        assert done == Migrated(1, 2, 0)
        kept = await resources.embeddings.get_embedding("m1", "p/1 é")
        assert kept.vector == np.ones(3, "<f4").tobytes()


async def test_rows_in_the_old_layout_are_replaced_by_themselves(
    own: Settings, tmp_path: Path
) -> None:
    """A scan of the very tables, migrated into them; what changed there since then is reported."""
    users = [{name: _typed(value) for name, value in _user(n).items()} for n in range(2)]
    rows = [{name: _typed(value) for name, value in _embedding(n).items()} for n in range(2)]
    path = tmp_path / "scan.json"
    async with open_resources(own) as resources:
        for table, items in (("users", users), ("embeddings", rows)):
            name = own.table(table)
            stale = [{**item} for item in items]
            stored = [item_of(item) for item in items]
            if table == "users":
                stored[1]["updated_at"] = item_of({"x": {"S": "2025-01-01"}})["x"]
            # An index of today's has no place for a row that lacks its key.
            await put_batch(resources.dynamo, name, stored)
            path.write_text(json.dumps({"Items": stale}))
            done, results = await _migrate(resources, path, table)
            expected = Migrated(1, 0, 1) if table == "users" else Migrated(2, 0, 0)
            assert done == expected, results
        assert (await resources.users.get_user("u0")).name == "Name 0"
        assert (await resources.embeddings.get_embedding("m1", "p/1 é")).dimension == 3


async def test_nothing_is_written_for_a_user_who_is_being_deleted(
    own: Settings, tmp_path: Path
) -> None:
    """Neither the profile nor a report comes back in between."""
    path = tmp_path / "data.json"
    async with open_resources(own) as resources:
        await _migrate(resources, _array(path, [_user(0), _user(1)]), "users")
        await resources.user_service.request_deletion("u0")
        late = [_user(n, updated_at="2099-01-01") for n in range(2)]
        done, results = await _migrate(resources, _array(path, late), "users")
        assert done == Migrated(1, 0, 1)
        assert [entry.id for entry in results if entry.outcome == "bad"] == ["u0"]
        done, _ = await _migrate(resources, _array(path, [_report(0), _report(1)]), "reports")
        assert done == Migrated(1, 0, 1)


async def test_a_file_that_breaks_off_gives_what_it_has(own: Settings, tmp_path: Path) -> None:
    """And the failure says how much that was."""
    path = _array(tmp_path / "u.json", [_user(n) for n in range(10)])
    path.write_text(path.read_text()[:-30])
    async with open_resources(own) as resources:
        with pytest.raises(FileError, match="9 stored, 0 already there, 1 bad"):
            await _migrate(resources, path, "users")
        assert len(await _items(resources, "users")) == 9


async def test_missing_tables_are_said_at_once(ministack: str, tmp_path: Path) -> None:
    """Trying again would not make them."""
    path = _array(tmp_path / "u.json", [_user(n) for n in range(3)])
    async with open_resources(settings_for(ministack)) as resources:
        with pytest.raises(TableMissing):
            await _migrate(resources, path, "users")


async def test_the_command_reports_and_says_what_is_bad(own: Settings, tmp_path: Path) -> None:
    """Exit status 1 and one last line; every bad entry in the report, the first on the terminal."""
    rows: list[Any] = [_user(n, nickname="x") for n in range(70)]
    for number in range(55):
        rows[number] = {**rows[number], "email": "nowhere"}
    _array(tmp_path / "u.json", rows)
    arguments = ("migrate", "u.json", "--table", "users", "--report", "bad.jsonl")
    status, out, error = await run_k9(own, tmp_path, *arguments)
    assert (status, out) == (1, "")
    lines = error.splitlines()
    assert lines[0].startswith("u.json:2 (entry 1, 'u0'): email is not an email address")
    assert lines[50:] == [
        "… and 5 more",
        "left out: 'nickname' of 15 rows, which K9 does not store",
        "k9: users: 15 stored, 0 already there, 55 bad",
    ]
    report = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert len(report) == 70
    bad = [line for line in report if line["outcome"] == "bad"]
    assert sorted(line["entry"] for line in bad) == list(range(1, 56))
    assert bad[0].keys() == {"outcome", "line", "entry", "id", "reason"}

    _array(tmp_path / "u.json", rows[60:])
    status, out, _ = await run_k9(own, tmp_path, *arguments)
    assert status == 0
    assert out.startswith("users: 0 stored, 10 already there, 0 bad, in ")


async def test_a_run_that_is_killed_is_taken_up(own: Settings, tmp_path: Path) -> None:
    """The next one stores the rest, and tells the two apart."""
    total = 2000
    _lines(tmp_path / "e.json", [_embedding(n) for n in range(total)])
    arguments = ("migrate", "e.json", "--table", "embeddings")
    process = await start_k9(own, tmp_path, *arguments)
    name = own.table("embeddings")
    async with asyncio.timeout(60):
        while (await item_counts(own))[name] < 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # it is another process's doing
    await kill(process)
    before = (await item_counts(own))[name]
    assert before < total
    status, out, error = await run_k9(own, tmp_path, *arguments)
    assert (status, error) == (0, "")
    found = re.match(r"embeddings: ([\d,]+) stored, ([\d,]+) already there, 0 bad", out)
    assert found
    stored, there = (int(number.replace(",", "")) for number in found.groups())
    # What was on its way when the process died may have been taken in after the count.
    assert stored + there == total
    assert there >= before
    assert (await item_counts(own))[name] == total


async def test_most_rows_fix_the_dimension_of_a_new_model(own: Settings, tmp_path: Path) -> None:
    """One short row is bad; of a model version without a common dimension none is stored."""
    short = {"embedding_vector": [1.0, 2.0], "vector_dimension": 2}
    rows = [_embedding(0, **short), *(_embedding(n) for n in range(1, 40))]
    rows[2:2] = [_embedding(n, model_version="m2", **(short if n < 2 else {})) for n in range(4)]
    path = _array(tmp_path / "e.json", rows)
    async with open_resources(own) as resources:
        done, results = await _migrate(resources, path, "embeddings")
        models = await resources.models.list_models()
    assert done == Migrated(stored=39, there=0, bad=5)
    assert [(model.model_version, model.dimension) for model in models] == [("m1", 3)]
    reasons = {(each.id, each.reason) for each in results if each.outcome == "bad"}
    assert any("no dimension is that of most of 4 rows" in (reason or "") for _, reason in reasons)
    assert any("has 2 numbers" in (reason or "") for _, reason in reasons)
