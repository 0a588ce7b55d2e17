from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from core.errors import NotFound, Unavailable
from core.settings import Settings
from deploy.cli import environment, verify_build


def test_a_build_that_fails_does_not_keep_the_others_from_being_verified(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether its row is gone or DynamoDB is away; the status tells of it."""
    verified = []

    async def list_models() -> list[Any]:
        return [SimpleNamespace(current_build_id=name) for name in ("gone", "away", "there")]

    async def get_build(build_id: str) -> Any:
        if build_id == "gone":
            raise NotFound("there is no build 'gone'")
        return SimpleNamespace(build_id=build_id)

    async def verify_one(_: object, build: Any) -> int:
        if build.build_id == "away":
            raise Unavailable("DynamoDB is away")
        verified.append(build.build_id)
        return 0

    @asynccontextmanager
    async def open_resources(_: Settings) -> Any:
        yield SimpleNamespace(
            models=SimpleNamespace(list_models=list_models),
            builds=SimpleNamespace(get_build=get_build),
        )

    monkeypatch.setattr(environment, "enter", lambda: (Settings(), None))
    monkeypatch.setattr(environment, "open_resources", open_resources)
    monkeypatch.setattr(verify_build, "_verify_one", verify_one)
    result = CliRunner().invoke(verify_build.command, standalone_mode=False)
    assert verified == ["there"]
    assert result.return_value == 3
    assert result.stderr == "k9: there is no build 'gone'\nk9: DynamoDB is away\n"
