"""The one DynamoDB client of a process. All of DynamoDB's I/O goes through `Dynamo.call`."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from core import telemetry
from core.aws import (
    REFUSED,
    client_config,
    new_session,
    open_client,
    public_message,
    raise_unavailable,
)
from core.aws_calls import OTHER, SEVERAL, UNREADABLE, AwsCall, count_timeout
from core.dynamo import tables
from core.dynamo.endpoint import PARSER, Endpoint
from core.dynamo.wire import Item, WireParser, item_of
from core.errors import (
    Busy,
    ConditionFailed,
    K9Error,
    Rejected,
    TableMissing,
    TransactionFailed,
    Unavailable,
)
from core.retry import RetryPolicy
from core.settings import Settings

_BUSY = frozenset(
    {
        "InternalFailure",
        "InternalServerError",
        "LimitExceededException",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestTimeout",
        UNREADABLE,
        "ServiceUnavailable",
        "Throttling",
        "ThrottlingException",
        "TransactionConflictException",
        "TransactionInProgressException",
    }
)
_REJECTED = frozenset({"ItemCollectionSizeLimitExceededException", "ValidationException"})
_THROTTLED = RetryPolicy(first_s=0.1, max_s=5.0)
_UNPROCESSED = ("UnprocessedItems", "UnprocessedKeys")


class Dynamo:
    """An open client, made by `open_dynamo`. A test's fake has the one method `call`."""

    def __init__(
        self,
        endpoint: Any,
        *,
        deadline_s: float,
        waits_out_throttling: bool = False,
        table_names: Mapping[str, str] | None = None,
    ) -> None:
        """Takes an `Endpoint`; `table_names` has the short names of tables by the full ones."""
        self._endpoint = endpoint
        self._table_names = table_names or {}
        self._deadline_s = deadline_s
        self._waits_out_throttling = waits_out_throttling
        self._answered = float("-inf")
        """When DynamoDB last answered any call, on the event loop's clock."""

    async def call(
        self, operation: str, *, parser: WireParser = PARSER, **parameters: Any
    ) -> dict[str, Any]:
        """Calls one operation on items, with its retries, within the deadline.

        Args:
            operation: botocore's name: `get_item`, `batch_write_item`.
            parser: of the reply; one of `core.dynamo.wire.Page` for a query of many rows.
            parameters: As DynamoDB has them. Values of items are in the request's form
                (`core.dynamo.items`) or as they came off the wire.

        Returns:
            The reply, items in it as `core.dynamo.wire.Item`.

        Raises:
            ConditionFailed: the condition of a write was not met; with the row, if requested.
            TransactionFailed: with one reason per operation.
            Rejected: the request, or an item in it, is not valid.
            TableMissing: the table or index is not there.
            Busy: throttled, or too slow while other calls of this process were answered.
            Unavailable: unreachable, too slow, or without credentials.
        """
        parameters["ReturnConsumedCapacity"] = "TOTAL"
        with AwsCall("dynamodb", _camel(operation), self._table(parameters)) as call:
            reply = await self._within_deadline(operation, parameters, parser)
            capacity = reply.pop("ConsumedCapacity", None)
            if capacity is not None:
                call.consumed(capacity, self._table_names)
            for member in _UNPROCESSED:
                for table, left in (reply.get(member) or {}).items():
                    items = left["Keys"] if isinstance(left, dict) else left
                    telemetry.UNPROCESSED_ITEMS.labels(self._name(table)).inc(len(items))
        return reply

    def _table(self, parameters: dict[str, Any]) -> str:
        """The table of a call, as metrics name it."""
        name = parameters.get("TableName")
        if name is not None:
            return self._name(name)
        found = _table_set(parameters)
        return self._name(found.pop()) if len(found) == 1 else SEVERAL

    def _name(self, table: str) -> str:
        return self._table_names.get(table, OTHER)

    async def _within_deadline(
        self, operation: str, parameters: dict[str, Any], parser: WireParser
    ) -> dict[str, Any]:
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._deadline_s):
                if not self._waits_out_throttling:
                    return await self._once(operation, parameters, parser)
                # botocore's own attempts end early where very many calls are throttled: its retry
                # quota is the process's, and runs out.
                return await _THROTTLED.call(
                    lambda: self._once(operation, parameters, parser),
                    on=Busy,
                    until=began + self._deadline_s,
                )
        except TimeoutError:
            count_timeout()
            kind = Busy if self._answered > began else Unavailable
            raise kind(
                f"DynamoDB did not answer {operation} within {self._deadline_s:g} s",
                public=f"DynamoDB did not answer within {self._deadline_s:g} s",
            ) from None

    async def _once(
        self, operation: str, parameters: dict[str, Any], parser: WireParser
    ) -> dict[str, Any]:
        """The call with botocore's own attempts."""
        try:
            reply: dict[str, Any] = await self._endpoint.call(_camel(operation), parameters, parser)
        except ClientError as error:
            self._answered = asyncio.get_running_loop().time()
            raised = _translate(error, operation, parameters)
            if raised is None:
                raise
            raise raised from error
        except BotoCoreError as error:
            raise_unavailable(error, "DynamoDB")
            raise
        self._answered = asyncio.get_running_loop().time()
        if "Error" in reply:
            raise Unavailable(
                f"DynamoDB's answer to {operation} could not be read",
                public="an answer of DynamoDB could not be read",
            )
        return reply


def _translate(error: ClientError, operation: str, parameters: dict[str, Any]) -> K9Error | None:
    """The one table from DynamoDB's error codes to K9's; None for a mistake of ours."""
    reply: dict[str, Any] = error.response
    code = str(reply.get("Error", {}).get("Code", ""))
    status = int(reply.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in {"ConditionalCheckFailedException", "TransactionCanceledException"}:
        return _unmet(code, reply)
    if code == "ResourceNotFoundException":
        return TableMissing(
            f"DynamoDB has no {_tables(parameters)}: `k9 tables create` makes the tables",
            public="a table is missing in DynamoDB; an operator has to create it",
        )
    if code in _BUSY or status >= 500:  # noqa: PLR2004 - HTTP's own
        return Busy(
            f"DynamoDB did not take {operation}: {code}", public="DynamoDB is busy; try again"
        )
    if code in _REJECTED:
        message = str(reply.get("Error", {}).get("Message", ""))
        return Rejected(f"DynamoDB rejected {operation}: {message}")
    if code in REFUSED:
        return Unavailable(
            f"DynamoDB refused K9's AWS credentials for {operation}: {code}",
            public=public_message("DynamoDB"),
        )
    return None


def _unmet(code: str, reply: dict[str, Any]) -> K9Error:
    """The error of a condition that was not met, of one write or in a transaction."""
    if code == "ConditionalCheckFailedException":
        return ConditionFailed(_item(reply))
    reasons = reply.get("CancellationReasons", [])
    return TransactionFailed(
        tuple(str(reason.get("Code", "None")) for reason in reasons),
        tuple(_item(reason) for reason in reasons),
    )


def _item(reply: dict[str, Any]) -> Item | None:
    stock = reply.get("Item")
    return item_of(stock) if stock else None


def _tables(parameters: dict[str, Any]) -> str:
    """The table (and index) that a call names, for a message."""
    if "TableName" in parameters:
        index = parameters.get("IndexName")
        return f"table {parameters['TableName']}" + (f" or index {index}" if index else "")
    return f"table among {', '.join(sorted(_table_set(parameters)))}"


def _table_set(parameters: dict[str, Any]) -> set[str]:
    """The tables that a batch or a transaction names."""
    names = set(parameters.get("RequestItems", {}))
    for operation in parameters.get("TransactItems", []):
        names |= {part["TableName"] for part in operation.values()}
    return names


@cache
def _camel(operation: str) -> str:
    """`get_item` → `GetItem`: as AWS, and so its own metrics, name it."""
    return "".join(word.capitalize() for word in operation.split("_"))


@asynccontextmanager
async def open_dynamo(settings: Settings) -> AsyncIterator[Dynamo]:
    """The process's client, open until the end of the block.

    Opening needs no DynamoDB: without one, or without credentials, each call raises `Unavailable`.
    """
    session = new_session()
    aws = settings.aws
    endpoint_url = aws.endpoint_url_dynamodb or aws.endpoint_url
    async with open_client(session, "dynamodb", client_config(settings), endpoint_url) as client:
        yield Dynamo(
            Endpoint(client),
            deadline_s=aws.deadline_s,
            waits_out_throttling=aws.waits_out_throttling,
            table_names={settings.table(each.name): each.name for each in tables.ALL},
        )
