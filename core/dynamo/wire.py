"""DynamoDB's requests and replies, encoded and decoded by msgspec.

botocore walks both through its service model value by value, which costs more than everything
else in a call. Here one msgspec decoder per operation gives the same dict of a reply, with items
as `dict[str, AttributeValue]`, and one encoder writes the body of a request. Operations without
items (control plane) and all errors go through botocore's own code.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, TypedDict
from zlib import crc32

import msgspec
from aiobotocore.parsers import AioJSONParser, AioResponseParserFactory

UNREADABLE = "RequestTimeoutException"
"""The code given to a reply that does not decode or fails its checksum. botocore's `standard`
retries try again on it, as they would have on a connection cut at that point."""


class AttributeValue(msgspec.Struct, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """One value of an item; of its members exactly one is set.

    Numbers are DynamoDB's decimal text; binary is bytes, no longer base64. Never part of a
    cycle, so the garbage collector does not track it: a page of rows is tens of thousands of them.
    """

    S: str | None = None
    N: str | None = None
    B: bytes | None = None
    BOOL: bool | None = None
    NULL: bool | None = None
    M: "dict[str, AttributeValue] | None" = None
    L: "list[AttributeValue] | None" = None
    SS: list[str] | None = None
    NS: list[str] | None = None
    BS: list[bytes] | None = None


Item = dict[str, AttributeValue]
RequestValue = dict[str, Any]
"""One value in a request's form: `{"S": "..."}`, `{"B": bytes}`, `{"N": "1"}`."""
RequestItem = dict[str, RequestValue]

_BINARY = (bytes,)


def request_value(value: AttributeValue) -> RequestValue:
    """A value as it came, in the form that a request takes."""
    converted: RequestValue = msgspec.to_builtins(value, builtin_types=_BINARY)
    return converted


def request_item(item: Mapping[str, AttributeValue]) -> RequestItem:
    """An item or key as it came (a `LastEvaluatedKey` too), in the form that a request takes."""
    return {name: request_value(value) for name, value in item.items()}


def item_of(stock: Mapping[str, Any]) -> Item:
    """An item in botocore's own form, as in error replies, in the form of all others."""
    return msgspec.convert(stock, Item)


class _Metrics(TypedDict, total=False):
    ItemCollectionKey: Item | None
    SizeEstimateRangeGB: list[float] | None


class _One(TypedDict, total=False):
    """GetItem, PutItem, UpdateItem, DeleteItem."""

    Item: Item | None
    Attributes: Item | None
    ConsumedCapacity: dict[str, Any] | None
    ItemCollectionMetrics: _Metrics | None


class _Page(TypedDict, total=False):
    """Query and Scan."""

    Items: list[Item] | None
    Count: int | None
    ScannedCount: int | None
    LastEvaluatedKey: Item | None
    ConsumedCapacity: dict[str, Any] | None


class _Keys(TypedDict, total=False):
    Keys: list[Item]
    AttributesToGet: list[str]
    ConsistentRead: bool
    ProjectionExpression: str
    ExpressionAttributeNames: dict[str, str]


class _Put(TypedDict):
    Item: Item


class _Delete(TypedDict):
    Key: Item


class _Write(TypedDict, total=False):
    PutRequest: _Put
    DeleteRequest: _Delete


class _BatchGet(TypedDict, total=False):
    Responses: dict[str, list[Item]] | None
    UnprocessedKeys: dict[str, _Keys] | None
    ConsumedCapacity: list[dict[str, Any]] | None


class _BatchWrite(TypedDict, total=False):
    UnprocessedItems: dict[str, list[_Write]] | None
    ItemCollectionMetrics: dict[str, list[_Metrics]] | None
    ConsumedCapacity: list[dict[str, Any]] | None


class _ItemResponse(TypedDict, total=False):
    Item: Item


class _TransactGet(TypedDict, total=False):
    Responses: list[_ItemResponse] | None
    ConsumedCapacity: list[dict[str, Any]] | None


class _TransactWrite(TypedDict, total=False):
    ItemCollectionMetrics: dict[str, list[_Metrics]] | None
    ConsumedCapacity: list[dict[str, Any]] | None


_REPLIES: dict[str, Any] = {
    "GetItemOutput": _One,
    "PutItemOutput": _One,
    "UpdateItemOutput": _One,
    "DeleteItemOutput": _One,
    "QueryOutput": _Page,
    "ScanOutput": _Page,
    "BatchGetItemOutput": _BatchGet,
    "BatchWriteItemOutput": _BatchWrite,
    "TransactGetItemsOutput": _TransactGet,
    "TransactWriteItemsOutput": _TransactWrite,
}
_DECODERS = {name: msgspec.json.Decoder(reply) for name, reply in _REPLIES.items()}
_RETURNED_TO_SENDER = ("UnprocessedItems", "UnprocessedKeys")


class WireParser(AioJSONParser):  # type: ignore[misc] # botocore has no types
    """Parses DynamoDB's replies. Stateless, so that one instance serves a process."""

    async def parse(self, response: dict[str, Any], shape: Any) -> dict[str, Any]:
        """The reply as a dict with `ResponseMetadata`, as botocore's parser gives it.

        Members that are null are left out and ones that are not known are dropped, both as
        botocore does. `UnprocessedItems` and `UnprocessedKeys` come in the request's form, ready
        to be sent again. A body that does not decode, or does not match the checksum that came
        with it, becomes an error of code `UNREADABLE`.

        Args:
            response: `body` (bytes), `headers`, `status_code`.
            shape: botocore's output shape of the operation, or of an error.
        """
        decoder = _DECODERS.get(shape.name) if shape is not None else None
        if decoder is None or response["status_code"] >= 300:  # noqa: PLR2004 - HTTP's own
            stock: dict[str, Any] = await super().parse(response, shape)
            return stock
        headers = {name.lower(): value for name, value in response["headers"].items()}
        metadata = {"HTTPStatusCode": response["status_code"], "HTTPHeaders": headers}
        if "x-amzn-requestid" in headers:
            metadata["RequestId"] = headers["x-amzn-requestid"]
        reply = _decode(decoder, response["body"], headers.get("x-amz-crc32"))
        reply["ResponseMetadata"] = metadata
        return reply


def _decode(
    decoder: "msgspec.json.Decoder[Any]", body: bytes, checksum: str | None
) -> dict[str, Any]:
    if checksum is not None and checksum != str(crc32(body)):
        return _unreadable("its checksum does not match")
    if not body:
        return {}
    try:
        reply: dict[str, Any] = decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        return _unreadable(str(error))
    if None in reply.values():
        reply = {name: value for name, value in reply.items() if value is not None}
    for name in _RETURNED_TO_SENDER:
        if reply.get(name):
            reply[name] = msgspec.to_builtins(reply[name], builtin_types=_BINARY)
    return reply


def _unreadable(why: str) -> dict[str, Any]:
    return {"Error": {"Code": UNREADABLE, "Message": f"the reply cannot be read: {why}"}}


@cache
def _wire_parser() -> WireParser:
    return WireParser()


class WireParserFactory(AioResponseParserFactory):  # type: ignore[misc] # botocore has no types
    """Gives the wire parser for DynamoDB's protocol, and botocore's own for any other."""

    def create_parser(self, protocol_name: str) -> Any:
        """The parser for one reply; botocore requests one for each reply."""
        if protocol_name == "json":
            return _wire_parser()
        return super().create_parser(protocol_name)


_TARGET_PREFIX = "DynamoDB_20120810."
_ITEM_OPERATIONS = frozenset(
    {
        "BatchGetItem",
        "BatchWriteItem",
        "DeleteItem",
        "GetItem",
        "PutItem",
        "Query",
        "Scan",
        "TransactGetItems",
        "TransactWriteItems",
        "UpdateItem",
    }
)


class WireSerializer:
    """Encodes requests that carry items: DynamoDB's JSON is the parameters as they stand.

    bytes become base64, and an `AttributeValue` as it came off the wire is taken as a value.
    """

    def __init__(self, stock: Any) -> None:
        self._stock = stock
        self._encoder = msgspec.json.Encoder()

    def serialize_to_request(
        self, parameters: dict[str, Any], operation_model: Any
    ) -> dict[str, Any]:
        """The request as botocore's own serializer makes it.

        Args:
            parameters: The call's parameters.
            operation_model: botocore's model of the operation.
        """
        if operation_model.name not in _ITEM_OPERATIONS:
            stock: dict[str, Any] = self._stock.serialize_to_request(parameters, operation_model)
            return stock
        return {
            "url_path": "/",
            "query_string": "",
            "method": "POST",
            "headers": {
                "X-Amz-Target": _TARGET_PREFIX + operation_model.name,
                "Content-Type": "application/x-amz-json-1.0",
            },
            "body": self._encoder.encode(parameters),
        }
