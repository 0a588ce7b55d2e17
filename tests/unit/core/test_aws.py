"""Clients of AWS: opened in a thread, and closed whoever asked for them."""

import asyncio
import threading
from typing import Any, Self, cast
from unittest.mock import Mock

import aioboto3
import pytest

from core.aws import ClientClosed, client_config, new_session, open_client
from core.dynamo.client import open_dynamo
from core.errors import Unavailable
from core.settings import Aws, Settings
from tests.emulators import CREDENTIALS, free_port


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the tests, which no server is asked for."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


class Opening:
    """A client whose opening takes until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.closed = False

    def client(self, *_: Any, **__: Any) -> Self:
        """What a session does."""
        return self

    async def __aenter__(self) -> Self:
        self.begun.set()
        await asyncio.to_thread(self.go_on.wait)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.closed = True


async def _use(client: Opening) -> None:
    """Opens it by a session that has no other, and leaves it again."""
    session = cast("aioboto3.Session", client)
    async with open_client(session, "sts", client_config(Settings()), None):
        pass


async def test_a_client_that_nobody_waits_for_any_more_is_closed() -> None:
    """Its thread cannot be stopped, and opens it all the same."""
    opening = Opening()
    using = asyncio.create_task(_use(opening))
    await asyncio.to_thread(opening.begun.wait)
    using.cancel()
    await asyncio.sleep(0)
    opening.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await using
    assert opening.closed


class Closing(Opening):
    """A client that is open at once, and whose closing takes until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on.set()
        self.meta = Mock()
        self.closing, self.may_close = asyncio.Event(), asyncio.Event()

    async def __aexit__(self, *_: object) -> None:
        self.closing.set()
        await self.may_close.wait()
        self.closed = True


async def test_a_client_is_closed_to_the_end() -> None:
    """Though its user is cancelled meanwhile: its connections would stay open."""
    client = Closing()
    using = asyncio.create_task(_use(client))
    await client.closing.wait()
    using.cancel()
    await asyncio.sleep(0)
    client.may_close.set()
    with pytest.raises(asyncio.CancelledError):
        await using
    assert client.closed


async def test_a_closed_client_of_dynamodb_opens_no_connection() -> None:
    """K9 sends operations on items over the client's connections by itself."""
    settings = Settings(aws=Aws(endpoint_url=f"http://127.0.0.1:{free_port()}"))
    async with open_dynamo(settings) as dynamo:
        pass
    with pytest.raises(Unavailable) as raised:
        await dynamo.call("get_item", TableName="t", Key={"product_id": {"S": "p"}})
    assert isinstance(raised.value.__cause__, ClientClosed)


async def test_a_closed_client_opens_no_connection() -> None:
    """A task that outlives its client is told so; nobody would close what it opens."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    settings = Settings()
    async with open_client(new_session(), "sts", client_config(settings), nowhere) as client:
        pass
    with pytest.raises(ClientClosed):
        await client.get_caller_identity()
