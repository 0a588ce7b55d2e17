"""Sending the operations on items: K9's encoding and signature, botocore's connections and retries.

botocore composes each request anew from its model of the service, by some twenty events, and that
takes several times as long as to send it. Here the address is resolved once, and a call has only
what changes: body, time and signature. What decides whether and when an attempt is repeated, and
the quota of that, are botocore's own handlers, by the events that botocore gives them.
"""

import asyncio
import time
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit
from uuid import uuid4

from botocore.awsrequest import AWSPreparedRequest
from botocore.exceptions import BotoCoreError, NoCredentialsError
from botocore.handlers import add_recursion_detection_header
from botocore.hooks import first_non_none_response

from core.aws_calls import count_attempt
from core.dynamo.signing import Signer
from core.dynamo.wire import WireParser, encode

PARSER: Final = WireParser()
_TARGET_PREFIX: Final = "DynamoDB_20120810."
_ERROR_FROM: Final = 300
_Outcome: TypeAlias = tuple[Any, dict[str, Any]] | Exception
"""Of an attempt: botocore's response and what it says, or the error in their place."""


class Endpoint:
    """Calls the operations on items, over the connections of an open client."""

    def __init__(self, client: Any) -> None:
        """Takes botocore's client."""
        self._client = client
        self._model = client.meta.service_model
        self._events = client.meta.events
        # Here and in `_resolve` alone K9 reaches into a client. A test compares what is sent with
        # what the client itself sends.
        self._http = client._endpoint.http_session  # noqa: SLF001
        self._region = client._request_signer.region_name  # noqa: SLF001
        self._credentials = client._request_signer._credentials  # noqa: SLF001
        """None: there are none."""
        self._url = ""
        self._signer: Signer | None = None

    async def call(
        self, name: str, parameters: dict[str, Any], parser: WireParser = PARSER
    ) -> dict[str, Any]:
        """One call of the operation that AWS names so (`GetItem`), with its attempts.

        Returns:
            The reply; with `Error` where the last attempt's could not be read.

        Raises:
            ClientError: DynamoDB refused it.
            BotoCoreError: there are no credentials, or no connection.
        """
        if name == "TransactWriteItems":
            # A repeated attempt must not be taken for another transaction.
            parameters.setdefault("ClientRequestToken", str(uuid4()))
        body = encode(parameters)
        model = self._model.operation_model(name)
        context: dict[str, Any] = {}
        attempts = 1
        while True:
            outcome = await self._attempt(model, body, parser)
            delay_s = await self._retry_delay_s(model, attempts, outcome, context)
            if delay_s is None:
                break
            await asyncio.sleep(delay_s)
            attempts += 1
        if isinstance(outcome, Exception):
            raise outcome
        response, reply = outcome
        reply["ResponseMetadata"]["RetryAttempts"] = attempts - 1
        # Gives back to the quota of retries.
        await self._events.emit(
            f"after-call.dynamodb.{name}",
            http_response=response,
            parsed=reply,
            model=model,
            context=context,
        )
        if response.status_code >= _ERROR_FROM:
            code = reply.get("Error", {}).get("Code")
            raise self._client.exceptions.from_code(code)(reply, name)
        return reply

    async def _retry_delay_s(
        self, model: Any, attempts: int, outcome: _Outcome, context: dict[str, Any]
    ) -> float | None:
        """How long to wait before another attempt, as botocore decides; None for no other."""
        response, error = None, None
        if isinstance(outcome, Exception):
            error = outcome
        elif "Error" in outcome[1]:
            response = outcome
        else:
            return None
        delays = await self._events.emit(
            f"needs-retry.dynamodb.{model.name}",
            response=response,
            endpoint=None,
            operation=model,
            attempts=attempts,
            caught_exception=error,
            request_dict={"context": context},
        )
        delay_s: float | None = first_non_none_response(delays)
        return delay_s

    async def _attempt(self, model: Any, body: bytes, parser: WireParser) -> _Outcome:
        """Sends the request once."""
        request = await self._request(model.name, body)
        try:
            response = await self._http.send(request)
        except BotoCoreError as error:
            count_attempt(None, error)
            failed: Exception = error
            return failed
        arrived = {
            "body": await response.content,
            "headers": response.headers,
            "status_code": response.status_code,
            "context": {"operation_name": model.name},
        }
        reply: dict[str, Any] = await parser.parse(arrived, model.output_shape)
        if response.status_code >= _ERROR_FROM:
            shape = self._model.shape_for_error_code(reply.get("Error", {}).get("Code"))
            if shape is not None:
                reply.update(await parser.parse(arrived, shape))
        count_attempt(reply)
        return response, reply

    async def _request(self, name: str, body: bytes) -> AWSPreparedRequest:
        """An attempt's request, signed now."""
        signer = self._signer or await self._resolve()
        if self._credentials is None:
            raise NoCredentialsError
        credentials = await self._credentials.get_frozen_credentials()
        at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        headers = signer.headers(credentials, _TARGET_PREFIX + name, body, at)
        headers["User-Agent"] = self._client.meta.config.user_agent
        add_recursion_detection_header({"headers": headers})
        return AWSPreparedRequest("POST", self._url, headers, body, stream_output=False)

    async def _resolve(self) -> Signer:
        """Finds the address by botocore's rules: it is the same for all operations on items."""
        context: dict[str, Any] = {}
        model = self._model.operation_model("GetItem")
        url, _, _ = await self._client._resolve_endpoint_ruleset(model, {}, context)  # noqa: SLF001
        region = context.get("signing", {}).get("region", self._region)
        self._url = url if urlsplit(url).path else f"{url}/"
        self._signer = Signer(self._url, region)
        return self._signer
