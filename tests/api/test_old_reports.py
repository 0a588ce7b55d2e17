"""Reports that came over from older data, under the ids that they had."""

import json
from pathlib import Path
from uuid import uuid4

import pytest

from core.embedding_files.file_input import open_input
from deploy.data.migration.migrate import migrate_file
from tests.api.conftest import Service
from tests.api.people import person, same


@pytest.mark.parametrize(
    "report_id", ["6f1d0e9c-{}", "report_{}", "R.{}~x", "{}", "-{}" + "x" * 115]
)
async def test_a_migrated_report_is_its_owners_over_http(
    service: Service, report_id: str, tmp_path: Path
) -> None:
    """Read, changed and deleted by the id that it had; for others it does not exist."""
    report_id = report_id.format(uuid4().hex[:12])
    async with person(service) as ada, person(service) as bob:
        row = {"id": report_id, "user_id": ada.sub, "title": "Old", "created_at": "2024-05-01"}
        (tmp_path / "r.json").write_text(json.dumps([row]))
        with open_input(tmp_path / "r.json", service.resources.settings.files) as file:
            done = await migrate_file(service.resources, file, "reports")
        assert done.stored == 1
        path = f"/reports/{report_id}"
        reply = await ada.client.get(path)
        assert (reply.status_code, reply.headers["etag"]) == (200, '"1"')
        assert reply.json()["created_at"] == "2024-05-01T00:00:00.000000Z"
        same(await bob.client.get(path), await bob.client.get("/reports/none"))
        same(await bob.client.delete(path), await bob.client.delete("/reports/none"))
        reply = await ada.client.patch(path, json={"title": "New"}, headers={"If-Match": '"1"'})
        assert (reply.status_code, reply.json()["title"]) == (200, "New")
        assert (await ada.client.delete(path)).status_code == 204
        assert (await ada.client.get(path)).status_code == 404
