"""DynamoDB's requests and replies, encoded and decoded by msgspec.

botocore walks both through its service model value by value, which costs more than everything
else in a call. Here msgspec decodes a reply to the same dict, with items as
`dict[str, AttributeValue]`, and encodes the body of a request. All errors go through botocore's own
code.
"""

from collections.abc import Mapping
from typing import Any, Generic, TypedDict, TypeVar
from zlib import crc32

import msgspec
from aiobotocore.parsers import AioJSONParser

from core.aws_calls import UNREADABLE, Capacity


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
T = TypeVar("T")
RequestValue = dict[str, Any]
"""One value in a request's form: `{"S": "..."}`, `{"B": bytes}`, `{"N": "1"}`."""
RequestItem = dict[str, RequestValue]

_BINARY = (bytes,)


def request_value(value: AttributeValue) -> RequestValue:
    """A value as it came, in the form that a request takes."""
    converted: RequestValue = msgspec.to_builtins(value, builtin_types=_BINARY)
    return converted


def item_of(stock: Mapping[str, Any]) -> Item:
    """An item in botocore's own form, as in error replies, in the form of all others."""
    return msgspec.convert(stock, Item)


class _Keys(TypedDict, total=False):
    """What BatchGetItem is asked of one table."""

    Keys: list[Item]
    ConsistentRead: bool


class _Reply(TypedDict, total=False):
    """The members that K9 reads, of all operations."""

    Item: Item | None
    Attributes: Item | None
    Items: list[Item] | None
    Count: int | None
    LastEvaluatedKey: Item | None
    Responses: dict[str, list[Item]] | None
    UnprocessedKeys: dict[str, _Keys] | None
    UnprocessedItems: dict[str, list[dict[str, dict[str, Item]]]] | None
    """A table's `PutRequest: {Item}` and `DeleteRequest: {Key}`."""
    ConsumedCapacity: Capacity | list[Capacity] | None


class Page(TypedDict, Generic[T], total=False):
    """The reply of a Query that is read for many rows: T has the attributes that are wanted.

    Each is a Struct with the members of `AttributeValue` that it may have. What is not named is
    neither decoded nor kept.
    """

    Items: list[T]
    LastEvaluatedKey: Item | None
    ConsumedCapacity: Capacity | None


_DECODER = msgspec.json.Decoder(_Reply)
_RETURNED_TO_SENDER = ("UnprocessedItems", "UnprocessedKeys")


class WireParser(AioJSONParser):  # type: ignore[misc] # botocore has no types
    """Parses DynamoDB's replies. Stateless, so that one instance serves a process."""

    def __init__(self, decoder: msgspec.json.Decoder[Any] = _DECODER) -> None:
        """Takes the decoder of replies that are no errors: of `Page`, or of any operation's."""
        super().__init__()
        self._decoder = decoder

    async def parse(self, response: dict[str, Any], shape: Any) -> dict[str, Any]:
        """The reply as a dict with `ResponseMetadata`, as botocore's parser gives it.

        Members that are null, or that K9 does not read (metrics), are left out.
        `UnprocessedItems` and `UnprocessedKeys` come in the request's form, ready to be sent again.
        A body that does not decode, or does not match the checksum that came
        with it, becomes an error of code `UNREADABLE`.

        A response has `body` (bytes), `headers` (names in lower case) and `status_code`; the shape
        is botocore's, of the operation's output or of an error.
        """
        if response["status_code"] >= 300:  # noqa: PLR2004 - HTTP's own
            stock: dict[str, Any] = await super().parse(response, shape)
            return stock
        headers = response["headers"]
        metadata = {"HTTPStatusCode": response["status_code"], "HTTPHeaders": headers}
        if "x-amzn-requestid" in headers:
            metadata["RequestId"] = headers["x-amzn-requestid"]
        reply = _decode(self._decoder, response["body"], headers.get("x-amz-crc32"))
        reply["ResponseMetadata"] = metadata
        return reply


def _decode(
    decoder: msgspec.json.Decoder[Any], body: bytes, checksum: str | None
) -> dict[str, Any]:
    if checksum is not None and checksum != str(crc32(body)):
        return _unreadable("its checksum does not match")
    if not body:
        return {}
    try:
        decoded = decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        return _unreadable(str(error))
    reply: dict[str, Any] = {name: part for name, part in decoded.items() if part is not None}
    for name in _RETURNED_TO_SENDER:
        if reply.get(name):
            reply[name] = msgspec.to_builtins(reply[name], builtin_types=_BINARY)
    return reply


def _unreadable(why: str) -> dict[str, Any]:
    return {"Error": {"Code": UNREADABLE, "Message": f"the reply cannot be read: {why}"}}


_ENCODER = msgspec.json.Encoder()


def encode(parameters: dict[str, Any]) -> bytes:
    """The body of a request on items: DynamoDB's JSON is the parameters as they stand.

    bytes become base64, and an `AttributeValue` as it came off the wire is taken as a value.
    """
    return _ENCODER.encode(parameters)
