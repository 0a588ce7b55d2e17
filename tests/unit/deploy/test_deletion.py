from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import AsyncMock

import pytest

from core.settings import Settings
from deploy.aws import deletion, stacks
from deploy.callbacks import ignore
from deploy.errors import CommandError


async def test_objects_that_s3_refuses_to_delete_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the first of them; the same page would come again for ever."""
    client = AsyncMock()
    client.list_objects_v2.return_value = {"Contents": [{"Key": "a"}, {"Key": "b"}]}
    refused = [{"Key": "b", "Code": "AccessDenied", "Message": "no"}]
    # The second one ends the test where nothing else does.
    client.delete_objects.side_effect = [{"Errors": refused}, AssertionError("asked again")]

    @asynccontextmanager
    async def open_client(*_: object) -> Any:
        yield client

    monkeypatch.setattr(deletion, "open_client", open_client)
    monkeypatch.setattr(stacks, "outputs", AsyncMock(return_value={"IndexesBucketName": "bucket"}))
    monkeypatch.setattr(stacks, "delete", AsyncMock())
    monkeypatch.setattr(deletion, "describe_table", AsyncMock(return_value=None))
    with pytest.raises(CommandError, match="bucket: b was not deleted: AccessDenied"):
        await deletion.delete_data(Settings(), ignore)
    client.delete_bucket.assert_not_called()
