"""The API as a Lambda function behind an HTTP API of API Gateway: `api.lambda_handler.handler`.

Lambda runs this process only while it answers. What needs time of its own between requests, such as
following changed rows, goes on with the next request; `deploy/cloudformation/lambda.yaml` says what
that means. The extra `lambda` installs the adapter.
"""

import asyncio
import base64
import os
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, cast

from litestar.types import Receive, Scope, Send
from mangum import Mangum
from mangum.protocols import LifespanCycle

from api.app import create_app
from core import telemetry
from core.aws import client_config, new_session, open_client
from core.settings import Settings
from core.vectors.families import set_threads

_SECRETS: Final = {"K9_REDIS_URL_SECRET": "REDIS_URL", "K9_CURSOR_KEYS_SECRET": "K9_CURSOR_KEYS"}
"""Variables with the ARN of a secret, and the setting that its text is."""
_TEXT: Final = ["text/", "application/json", "application/problem+json", "+json"]
_READY_S: Final = 20.0
"""How long the first request waits for the current indexes."""


class LambdaApi:
    """The application in one execution environment: started once, then called for each event."""

    def __init__(self, settings: Settings) -> None:
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)  # where the adapter looks for it
        self._app = create_app(settings)
        self._adapter = Mangum(cast("Any", self._call), lifespan="off", text_mime_types=_TEXT)
        self._lifespan = LifespanCycle(cast("Any", self._app), "on")
        self._lifespan.__enter__()
        set_threads(1)
        self._loop.run_until_complete(self._app.health.until_loaded(_READY_S))

    def answer(self, event: dict[str, Any], context: Any) -> dict[str, Any]:
        """The response to an event of payload format 2.0."""
        response: dict[str, Any] = self._adapter(event, context)
        return response

    def close(self) -> None:
        """Closes what is open; Lambda itself never asks for it."""
        self._lifespan.__exit__(None, None, None)
        self._loop.close()

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The adapter decodes the path, and product ids may have an escaped slash.
        event = cast("Any", scope)["aws.event"]
        cast("Any", scope)["raw_path"] = event["rawPath"].encode()
        headers = scope["headers"]
        if event.get("body") and not any(name == b"content-length" for name, _ in headers):
            # Clients may send it in chunks; here all of it has come.
            scope["headers"] = [*headers, (b"content-length", b"%d" % _body_bytes(event))]
        await self._app(scope, receive, send)


def _body_bytes(event: Mapping[str, Any]) -> int:
    body: str = event["body"]
    return len(base64.b64decode(body)) if event.get("isBase64Encoded") else len(body.encode())


async def read_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings that are secrets, read from Secrets Manager by the ARNs in the environment.

    A function's own variables are shown to whoever may look at its configuration.
    """
    wanted = {name: environ[arn] for arn, name in _SECRETS.items() if environ.get(arn)}
    if not wanted:
        return {}
    settings = Settings.from_env(environ)
    config = client_config(settings, read_timeout_s=settings.redis_timeout_s)
    url = settings.aws.endpoint_url
    async with open_client(new_session(), "secretsmanager", config, url) as client:
        return {
            name: (await client.get_secret_value(SecretId=arn))["SecretString"]
            for name, arn in wanted.items()
        }


@cache
def _api() -> LambdaApi:
    secrets = asyncio.run(read_secrets(os.environ))
    settings = Settings.from_env({**os.environ, **secrets})
    telemetry.configure_logging(level=settings.log_level, json=settings.log_json)
    return LambdaApi(settings)


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """What Lambda calls; the first call of an environment starts the application."""
    return _api().answer(event, context)
