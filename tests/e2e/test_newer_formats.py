"""Commands on data of a later release: one line that says so, and nothing changes."""

import json
from pathlib import Path

from core.resources import Resources
from tests.contracts.test_newer_formats import make_newer, newer_tables
from tests.e2e.commands import item_counts, run_k9


async def test_commands_refuse_newer_tables(one: Resources, tmp_path: Path) -> None:
    """Import, backup and verification; they work again once the mark is gone."""
    (tmp_path / "rows.jsonl").write_text('{"product_id": "p", "vector": [1, 2]}\n')
    commands = (("import", "rows.jsonl", "--model", "m"), ("backup", "b"), ("verify-build",))
    async with newer_tables(one.dynamo, one.settings):
        before = await item_counts(one.settings)
        for command in commands:
            status, out, error = await run_k9(one.settings, tmp_path, *command)
            assert (status != 0, out) == (True, "")
            (line,) = error.splitlines()
            assert "format 2" in line
            assert "up to 1" in line
            assert "Upgrade" in line
        assert await item_counts(one.settings) == before
    for command in commands[:2]:
        status, _, error = await run_k9(one.settings, tmp_path, *command)
        assert status == 0, error


async def test_a_newer_model_version_in_a_backup_is_not_restored(
    one: Resources, tmp_path: Path
) -> None:
    """Nor is anything else of it: the tables have what they had, --force or not."""
    (tmp_path / "rows.jsonl").write_text('{"product_id": "p", "vector": [1, 2]}\n')
    status, _, error = await run_k9(one.settings, tmp_path, "import", "rows.jsonl", "--model", "m")
    assert status == 0, error
    await make_newer(one.dynamo, one.settings, "models", model_version="m")
    status, _, error = await run_k9(one.settings, tmp_path, "backup", "b")
    assert status == 0, error
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["format"] == 1
    before = await item_counts(one.settings)
    status, out, error = await run_k9(one.settings, tmp_path, "restore", "b", "--force")
    assert (status, out) == (1, "")
    assert "'m' in the backup has format 2" in error
    assert await item_counts(one.settings) == before
