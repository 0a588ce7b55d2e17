"""What is wrong with one row of existing data stops no other, wherever it is found out."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.dynamo.client import Dynamo
from core.dynamo.wire import item_of
from core.embedding_files.file_input import open_input
from core.errors import Rejected
from core.models import Metric
from core.resources import Resources, open_resources
from core.settings import Settings
from deploy.data.bulk import put_batch
from deploy.data.migration.migrate import EntryResult, Migrated, migrate_file
from tests.e2e.commands import run_k9
from tests.emulators import create_tables, settings_for

CASES = Path(__file__).parent.parent / "cases"


@pytest.fixture
async def own(emulator: Settings) -> Settings:
    """Tables of a test's own, on each emulator."""
    return await create_tables(settings_for(emulator.aws.endpoint_url or ""))


async def migrated(
    resources: Resources, path: Path, table: Any, metric: Metric | None = None
) -> tuple[Migrated, dict[int, str]]:
    """What a migration comes to, and why each bad entry is bad."""
    results: list[EntryResult] = []
    with open_input(path, resources.settings.files) as file:
        done = await migrate_file(resources, file, table, metric=metric, on_entry=results.append)
    return done, {one.entry: one.reason or "" for one in results if one.outcome == "bad"}


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


async def test_a_version_of_42_digits(ministack: str, tmp_path: Path) -> None:
    """The case as it was filed: its line is named, and the three other users are stored."""
    settings = await create_tables(settings_for(ministack))
    file = CASES / "d1_one_bad_version.json"
    status, out, error = await run_k9(settings, tmp_path, "migrate", str(file), "--table", "users")
    assert (status, out) == (1, "")
    assert error.splitlines() == [
        "d1_one_bad_version.json:2 (entry 2, 'h1-v2'): version has 42 digits, the most is 38",
        "k9: users: 3 stored, 0 already there, 1 bad",
    ]


async def test_versions_of_up_to_38_digits(own: Settings) -> None:
    """The case as it was filed: each is stored as it is, and counts on."""
    async with open_resources(own) as resources:
        done, bad = await migrated(resources, CASES / "d2_version_ns.json", "reports")
        assert (done, bad) == (Migrated(5, 0, 0), {})
        rows = json.loads((CASES / "d2_version_ns.json").read_text())
        for row in rows:
            report = await resources.reports.get_report(row["id"], row["user_id"])
            assert report.version == row["version"]
            for _ in range(3):
                versions = frozenset({report.version})
                report = await resources.report_service.change(
                    row["id"], row["user_id"], {"author": "Ada"}, versions
                )
                assert report.version not in versions
            await resources.report_service.delete(
                row["id"], row["user_id"], frozenset({report.version})
            )


async def test_a_model_version_of_another_metric(own: Settings, tmp_path: Path) -> None:
    """Its rows are bad; those of other model versions are stored."""
    rows = [
        {"product_id": f"p{n}", "model_version": f"m{n % 2}", "embedding_vector": [1, n + 1]}
        for n in range(6)
    ]
    async with open_resources(own) as resources:
        await resources.models.create_model("m0", 2, "l2", 4)
        done, bad = await migrated(
            resources, lines(tmp_path / "e.json", rows), "embeddings", metric="ip"
        )
        assert (await resources.models.get_model("m1")).metric == "ip"
    assert done == Migrated(3, 0, 3)
    assert sorted(bad) == [1, 3, 5]
    assert {"m0 was created with metric l2, which stays"} == {*bad.values()}


async def test_a_model_version_that_cannot_be_read(own: Settings, tmp_path: Path) -> None:
    """Its rows are bad, whether it is found so first or later; the others are stored."""
    rows = [
        {"product_id": f"p{n}", "model_version": f"m{n % 2}", "embedding_vector": [1, n + 1]}
        for n in range(6)
    ]
    async with open_resources(own) as resources:
        strange = {"model_version": {"S": "m0"}, "dimension": {"S": "two"}}
        await put_batch(resources.dynamo, own.table("models"), [item_of(strange)])
        done, bad = await migrated(resources, lines(tmp_path / "e.json", rows), "embeddings")
    assert done == Migrated(3, 0, 3)
    assert sorted(bad) == [1, 3, 5]


async def test_a_row_there_that_cannot_be_read(own: Settings, tmp_path: Path) -> None:
    """It is left as it is, and stops no other row."""
    rows = [{"id": f"r{n}", "user_id": "u", "title": "t", "updated_at": n} for n in range(4)]
    async with open_resources(own) as resources:
        strange: list[dict[str, Any]] = [
            {"id": {"S": "r1"}, "title": {"S": "of nobody"}},
            {"id": {"S": "r2"}, "user_id": {"N": "1"}, "created_at": {"S": "x"}},
        ]
        strange[1].pop("user_id")
        table = own.table("reports")
        await put_batch(resources.dynamo, table, [item_of(item) for item in strange])
        done, bad = await migrated(resources, lines(tmp_path / "r.json", rows), "reports")
    assert done == Migrated(2, 0, 2)
    assert sorted(bad) == [2, 3]


async def test_a_row_that_dynamodb_rejects(
    own: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason, as for an item over 400 KB: the others are stored."""
    rows = [{"user_id": f"u{n}", "name": "x" * (n + 1)} for n in range(5)]
    async with open_resources(own) as resources:
        item = {"user_id": {"S": "large"}, "preferences": {"S": "x" * 410_000}}
        with pytest.raises(Rejected):
            await resources.dynamo.call("put_item", TableName=own.table("users"), Item=item)
        call = Dynamo.call

        async def picky(self: Dynamo, operation: str, **parameters: Any) -> dict[str, Any]:
            if parameters.get("Item", {}).get("user_id") == {"S": "u2"}:
                parameters["Item"] |= item | {"user_id": {"S": "u2"}}
            return await call(self, operation, **parameters)

        monkeypatch.setattr(Dynamo, "call", picky)
        done, bad = await migrated(resources, lines(tmp_path / "u.json", rows), "users")
    assert done == Migrated(4, 0, 1)
    assert [*bad] == [3]
    assert "size" in bad[3]
