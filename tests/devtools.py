"""Headless Chromium, driven through its DevTools protocol."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.faults.browser import start

_DEADLINE_S = 60.0


class Page:
    """One page of a browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        """Those that came while a command waited for its answer."""

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command."""
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(_DEADLINE_S):
            while True:
                message: dict[str, Any] = await self._socket.receive_json()
                if message.get("id") == number:
                    assert "error" not in message, message
                    result: dict[str, Any] = message["result"]
                    return result
                self.events.append(message)

    async def evaluate(self, script: str) -> Any:
        """The value of a script, awaited where it is a promise."""
        done = await self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")


@asynccontextmanager
async def open_page(binary: str, profile: Path) -> AsyncIterator[Page]:
    """An empty page of a browser that runs until the end of the block."""
    process = await start(binary, profile, "--remote-debugging-port=0", "about:blank")
    try:
        port = await _port(profile / "DevToolsActivePort")
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as reply:
                targets = json.loads(await reply.text())
            url = next(each["webSocketDebuggerUrl"] for each in targets if each["type"] == "page")
            async with session.ws_connect(url, max_msg_size=0) as socket:
                yield Page(socket)
    finally:
        process.terminate()
        await process.communicate()


async def _port(file: Path) -> int:
    async with asyncio.timeout(_DEADLINE_S):
        while not file.exists() or not file.read_text().strip():  # noqa: ASYNC110, ASYNC240 - it says so in no other way
            await asyncio.sleep(0.05)
    return int(file.read_text().split()[0])  # noqa: ASYNC240 - a line
