"""An emulator whose tables enforce their resource policies, as DynamoDB does and emulators do not.

It passes every request on, and refuses writes that a `Deny` statement of the table's policy names.
Callers are told apart by their access key; the condition on `aws:userid` is the only one it knows.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

OTHER = "AKIAOTHERCALLER"
"""The access key of a caller who is not the operator."""
_DROPPED = {"content-length", "transfer-encoding", "connection", "content-encoding"}


class Enforcing:
    """The server in front of an emulator."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._session: aiohttp.ClientSession | None = None
        self._policies: dict[str, dict[str, Any]] = {}
        """By the table's name."""
        self.user_id = ""
        """Of the operator, as the emulator's STS told it."""

    async def answer(self, request: web.Request) -> web.Response:
        """Passes a request on, or refuses it."""
        body = await request.read()
        _, _, operation = request.headers.get("X-Amz-Target", "").partition(".")
        caller = "other" if OTHER in request.headers.get("Authorization", "") else self.user_id
        if operation and self._denied(operation, json.loads(body), caller):
            error = {"__type": "AccessDeniedException", "message": "explicit deny in a policy"}
            return web.json_response(error, status=400)
        assert self._session is not None
        async with self._session.request(
            request.method,
            self._upstream + request.raw_path,
            headers={k: v for k, v in request.headers.items() if k.lower() not in _DROPPED},
            data=body,
        ) as reply:
            data = await reply.read()
            headers = {k: v for k, v in reply.headers.items() if k.lower() not in _DROPPED}
        if reply.ok and operation in {"PutResourcePolicy", "DeleteResourcePolicy"}:
            asked = json.loads(body)
            name = asked["ResourceArn"].rpartition("/")[2]
            self._policies[name] = json.loads(asked.get("Policy", '{"Statement": []}'))
        return web.Response(status=reply.status, headers=headers, body=data)

    def _denied(self, operation: str, body: dict[str, Any], caller: str) -> bool:
        policy = self._policies.get(body.get("TableName", ""), {"Statement": []})
        for statement in policy["Statement"]:
            if f"dynamodb:{operation}" in statement["Action"] and statement["Effect"] == "Deny":
                condition = statement.get("Condition", {}).get("StringNotEquals", {})
                if condition.get("aws:userid") != caller:
                    return True
        return False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Its address until the end of the block."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            self._session = session
            host, port = runner.addresses[0][:2]
            try:
                yield f"http://{host}:{port}"
            finally:
                await runner.cleanup()
