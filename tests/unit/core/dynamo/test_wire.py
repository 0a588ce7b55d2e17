"""The wire parser and serializer, held against botocore's own on the same bytes."""

import json
from base64 import b64encode
from typing import Any
from zlib import crc32

import pytest
from aiobotocore.parsers import AioJSONParser
from aiobotocore.session import AioSession
from botocore.serialize import JSONSerializer

from core.aws_calls import UNREADABLE, Capacity
from core.dynamo.wire import AttributeValue, WireParser, encode, item_of, request_value

VECTOR = bytes(range(256))


def b64(data: bytes) -> str:
    """Base64, as binary is on the wire."""
    return b64encode(data).decode()


ITEM: dict[str, Any] = {
    "string": {"S": 'a "quoted" \u2028 é \U0001f600'},
    "empty string": {"S": ""},
    "number": {"N": "-12345678901234567890123456789012345678"},
    "small": {"N": "1E-130"},
    "binary": {"B": b64(VECTOR)},
    "empty binary": {"B": ""},
    "true": {"BOOL": True},
    "false": {"BOOL": False},
    "null": {"NULL": True},
    "strings": {"SS": ["a", "é"]},
    "numbers": {"NS": ["1", "2.5"]},
    "binaries": {"BS": [b64(b"\x00"), b64(VECTOR)]},
    "map": {"M": {"": {"S": "x"}, "deep": {"M": {"list": {"L": [{"L": [{"B": b64(b"y")}]}]}}}}},
    "empty map": {"M": {}},
    "list": {"L": [{"S": "a"}, {"N": "1"}, {"NULL": True}, {"M": {"k": {"BOOL": False}}}]},
    "empty list": {"L": []},
}
KEY = {"id": {"S": "a"}, "binary": {"B": b64(b"\x01\x02")}}

REPLIES: list[tuple[str, dict[str, Any]]] = [
    ("GetItem", {"Item": ITEM}),
    ("GetItem", {"Item": {}}),
    ("GetItem", {}),
    ("GetItem", {"Item": None}),
    ("GetItem", {"Item": {"a": {"S": "x"}}, "NotKnown": {"a": [1, {}]}}),
    ("PutItem", {"Attributes": ITEM}),
    ("UpdateItem", {"Attributes": ITEM}),
    ("DeleteItem", {"Attributes": ITEM}),
    ("DeleteItem", {}),
    ("Query", {"Items": [ITEM, {}, KEY], "Count": 3, "LastEvaluatedKey": KEY}),
    ("Query", {"Items": [], "Count": 0}),
    ("Query", {}),
    ("Query", {"Items": [], "LastEvaluatedKey": None}),
    ("Scan", {"Items": [ITEM]}),
    ("BatchGetItem", {"Responses": {"t": [ITEM, KEY], "u": []}, "UnprocessedKeys": {}}),
    (
        "BatchGetItem",
        {"Responses": {}, "UnprocessedKeys": {"t": {"Keys": [KEY], "ConsistentRead": True}}},
    ),
    ("BatchWriteItem", {"UnprocessedItems": {}}),
    (
        "BatchWriteItem",
        {
            "UnprocessedItems": {
                "t": [{"PutRequest": {"Item": ITEM}}, {"DeleteRequest": {"Key": KEY}}]
            }
        },
    ),
    ("TransactWriteItems", {}),
]
UNREAD: list[tuple[str, dict[str, Any]]] = [
    ("Query", {"ScannedCount": 9}),
    ("BatchWriteItem", {"ItemCollectionMetrics": {"t": [{"SizeEstimateRangeGB": [0.0, 1.0]}]}}),
]


@pytest.fixture(scope="module")
async def service() -> Any:
    """The model of DynamoDB that botocore has."""
    return await AioSession().get_service_model("dynamodb")


def response(body: bytes, status: int = 200, checksum: int | None = None) -> dict[str, Any]:
    """A reply as botocore hands it to a parser."""
    checksums = {} if checksum is None else {"x-amz-crc32": str(checksum)}
    return {
        "body": body,
        "status_code": status,
        "headers": {"x-amzn-requestid": "ID"} | checksums,
        "context": {"operation_name": "any"},
    }


def stocked(part: Any) -> Any:
    """A reply with each value in the form that botocore gives it."""
    if isinstance(part, AttributeValue):
        return request_value(part)
    if isinstance(part, dict):
        return {name: stocked(value) for name, value in part.items()}
    if isinstance(part, list):
        return [stocked(value) for value in part]
    return part


def values_in(part: Any) -> list[Any]:
    """Every value of an item in a reply in botocore's form: dicts of one known member."""
    if isinstance(part, dict) and len(part) == 1 and part.keys() <= {"S", "N", "B", "M", "L"}:
        return [part]
    if isinstance(part, dict):
        return [found for value in part.values() for found in values_in(value)]
    if isinstance(part, list):
        return [found for value in part for found in values_in(value)]
    return []


@pytest.mark.parametrize(("operation", "reply"), REPLIES)
async def test_it_reads_what_botocore_reads(
    service: Any, operation: str, reply: dict[str, Any]
) -> None:
    """Every type, empty pages, missing items, nulls, unknown members: the same as botocore."""
    shape = service.operation_model(operation).output_shape
    arrived = response(json.dumps(reply).encode())
    ours = await WireParser().parse(arrived, shape)
    stock = await AioJSONParser().parse(arrived, shape)
    assert ours["ResponseMetadata"]["RequestId"] == "ID"
    assert stocked(ours) == stock


@pytest.mark.parametrize(("operation", "reply"), UNREAD)
async def test_it_leaves_out_what_nothing_reads(
    service: Any, operation: str, reply: dict[str, Any]
) -> None:
    """Metrics of item collections, which no call of K9's asks for or reads."""
    shape = service.operation_model(operation).output_shape
    ours = await WireParser().parse(response(json.dumps(reply).encode()), shape)
    assert ours.keys() == {"ResponseMetadata"}


@pytest.mark.parametrize("listed", [False, True])
async def test_it_reads_what_was_charged(service: Any, *, listed: bool) -> None:
    """Of one table, or of each table of a batch or a transaction."""
    operation = "TransactWriteItems" if listed else "Query"
    charged = {"TableName": "t", "CapacityUnits": 1.5, "GlobalSecondaryIndexes": {"i": {}}}
    reply = {"ConsumedCapacity": [charged] if listed else charged}
    shape = service.operation_model(operation).output_shape
    ours = await WireParser().parse(response(json.dumps(reply).encode()), shape)
    assert ours["ConsumedCapacity"] == ([Capacity("t", 1.5)] if listed else Capacity("t", 1.5))


@pytest.mark.parametrize("name", ["Item", "Attributes", "Items", "LastEvaluatedKey", "Responses"])
async def test_items_are_structs(service: Any, name: str) -> None:
    """No item of any reply of the data plane is left in botocore's form."""
    for operation, reply in REPLIES:
        shape = service.operation_model(operation).output_shape
        ours = await WireParser().parse(response(json.dumps(reply).encode()), shape)
        assert values_in(ours.get(name)) == []


async def test_unprocessed_work_can_be_sent_again(service: Any) -> None:
    """UnprocessedItems and UnprocessedKeys come in the request's form: the same bytes go out."""
    for operation, member in (
        ("BatchWriteItem", "UnprocessedItems"),
        ("BatchGetItem", "UnprocessedKeys"),
    ):
        sent = next(r[member] for o, r in REPLIES if o == operation and r.get(member))
        model = service.operation_model(operation)
        reply = await WireParser().parse(
            response(json.dumps({member: sent}).encode()), model.output_shape
        )
        again = {"RequestItems": reply[member]}
        stock = JSONSerializer().serialize_to_request(again, model)["body"]
        assert json.loads(encode(again)) == json.loads(stock) == {"RequestItems": sent}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"__type": "com.amazonaws#ValidationException", "message": "bad"}),
        (400, {"__type": "ResourceNotFoundException", "Message": "no table"}),
        (500, {"__type": "InternalServerError"}),
        (503, None),
    ],
)
async def test_errors_take_botocores_way(service: Any, status: int, body: Any) -> None:
    """An error reply is botocore's own to read, also one without a body."""
    shape = service.operation_model("GetItem").output_shape
    arrived = response(json.dumps(body).encode() if body else b"", status)
    assert await WireParser().parse(arrived, shape) == await AioJSONParser().parse(arrived, shape)


async def test_the_fields_of_an_error_take_botocores_way(service: Any) -> None:
    """The second reading of an error, for the fields of its own, is botocore's too."""
    shape = service.shape_for_error_code("ConditionalCheckFailedException")
    arrived = response(json.dumps({"message": "no", "Item": ITEM}).encode(), 400)
    fields = await WireParser().parse(arrived, shape)
    assert fields == await AioJSONParser().parse(arrived, shape)
    assert stocked(item_of(fields["Item"])) == fields["Item"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"Item": {"a": {"S": "x"',
        b"<html>a proxy's page</html>",
        b'{"Item": {"a": {"S": 1}}}',
        b'{"Item": {"a": {"B": "not base64!"}}}',
        b'{"Item": {"a": ' + b'{"L": [' * 100_000,
        b"\xff\xfe",
        b"[]",
    ],
)
async def test_a_reply_that_cannot_be_read_is_tried_again(service: Any, body: bytes) -> None:
    """Cut short, no JSON, wrong types, nested for ever: an error that botocore retries."""
    shape = service.operation_model("GetItem").output_shape
    reply = await WireParser().parse(response(body), shape)
    assert reply["Error"]["Code"] == UNREADABLE
    assert reply.keys() == {"Error", "ResponseMetadata"}


async def test_a_reply_that_fails_its_checksum_is_tried_again(service: Any) -> None:
    """Bytes that are not those the checksum was made of are not taken, though they read."""
    shape = service.operation_model("GetItem").output_shape
    body = b'{"Item": {}}'
    good = response(body, checksum=crc32(body))
    assert (await WireParser().parse(good, shape))["Item"] == {}
    bad = response(body, checksum=crc32(body) + 1)
    assert (await WireParser().parse(bad, shape))["Error"]["Code"] == UNREADABLE


async def test_an_empty_body_is_an_empty_reply(service: Any) -> None:
    """As botocore has it."""
    shape = service.operation_model("PutItem").output_shape
    arrived = response(b"")
    assert await WireParser().parse(arrived, shape) == await AioJSONParser().parse(arrived, shape)


async def test_dynamodb_still_speaks_json(service: Any) -> None:
    """Should botocore move DynamoDB to another protocol, the wire parser must follow."""
    assert service.resolved_protocol == "json"


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        ("GetItem", {"TableName": "t", "Key": {"id": {"S": "é\u2028"}}, "ConsistentRead": True}),
        ("PutItem", {"TableName": "t", "Item": {"v": {"B": VECTOR}, "n": {"N": "1"}}}),
        (
            "Query",
            {
                "TableName": "t",
                "Limit": 5,
                "ExpressionAttributeNames": {"#n0": "id"},
                "ExpressionAttributeValues": {":v0": {"L": [{"BS": [b"a"]}, {"NULL": True}]}},
                "KeyConditionExpression": "#n0 = :v0",
            },
        ),
        ("BatchGetItem", {"RequestItems": {"t": {"Keys": [{"id": {"B": b""}}]}}}),
        ("TransactWriteItems", {"TransactItems": [], "ClientRequestToken": "x"}),
    ],
)
async def test_it_sends_what_botocore_sends(
    service: Any, operation: str, parameters: dict[str, Any]
) -> None:
    """The same JSON."""
    model = service.operation_model(operation)
    stock = JSONSerializer().serialize_to_request(parameters, model)
    assert json.loads(encode(parameters)) == json.loads(stock["body"])


async def test_values_off_the_wire_are_sent_as_they_came(service: Any) -> None:
    """A LastEvaluatedKey is an ExclusiveStartKey without conversion."""
    shape = service.operation_model("Query").output_shape
    reply = await WireParser().parse(
        response(json.dumps({"LastEvaluatedKey": ITEM}).encode()), shape
    )
    body = encode({"ExclusiveStartKey": reply["LastEvaluatedKey"]})
    assert json.loads(body) == {"ExclusiveStartKey": ITEM}
