"""What a busy DynamoDB answers: calls turned away, and batches of which it took only a part.

A request changed on its way keeps a signature that no longer fits it, which emulators let pass.
"""

import json
import random
from typing import Any
from zlib import crc32

import msgspec

from tests.faults.messages import Message

BATCH_WRITE = "BatchWriteItem"
_PREFIX = b"DynamoDB_20120810."
_TYPE = (b"Content-Type", b"application/x-amz-json-1.0")
_THROTTLED = {
    "__type": "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException",
    "message": "throttled by the fault kit",
}

Requests = dict[str, list[Any]]
"""Table → its put and delete requests, as DynamoDB has them."""


def operation_of(request: Message) -> str | None:
    """The operation of DynamoDB's that a request asks for; None where it is another service's."""
    target = request.header(b"x-amz-target")
    return target.removeprefix(_PREFIX).decode() if target.startswith(_PREFIX) else None


def throttled() -> Message:
    """The answer to a call that was not carried out."""
    return _answer(b"HTTP/1.1 400 Bad Request", _THROTTLED)


class Split(msgspec.Struct, frozen=True):
    """A BatchWriteItem, divided into what goes on and what is held back."""

    request: Message | None
    """What is left of the request; None where nothing of it is."""
    held: Requests

    @property
    def items(self) -> int:
        """How many requests were held back."""
        return sum(map(len, self.held.values()))

    def answer(self, reply: Message | None) -> Message:
        """The whole call's answer, from DynamoDB's to the part, None where it saw no part.

        An error stands as it is: then nothing of the call was carried out.
        """
        if reply is None:
            return _answer(b"HTTP/1.1 200 OK", {"UnprocessedItems": self.held})
        if reply.status != 200:
            return reply
        body = json.loads(reply.body)
        left = body.setdefault("UnprocessedItems", {})
        for table, requests in self.held.items():
            left[table] = left.get(table, []) + requests
        return _with_body(reply, body)


def split(request: Message, chance: random.Random) -> Split:
    """Holds back at least one of a batch's requests, at most all of them, at random."""
    body = json.loads(request.body)
    every = [(table, one) for table, some in body["RequestItems"].items() for one in some]
    going = set(chance.sample(range(len(every)), chance.randrange(len(every))))
    parts: tuple[Requests, Requests] = {}, {}
    for index, (table, one) in enumerate(every):
        parts[index in going].setdefault(table, []).append(one)
    held, forwarded = parts
    if not forwarded:
        return Split(None, held)
    return Split(_with_body(request, body | {"RequestItems": forwarded}), held)


def _answer(start: bytes, body: Any) -> Message:
    return _with_body(Message(start, (_TYPE, (b"x-amz-crc32", b""))), body)


def _with_body(message: Message, body: Any) -> Message:
    """The message with another body, and the checksum of that one if it has any."""
    data = json.dumps(body, separators=(",", ":")).encode()
    headers = tuple(
        (name, b"%d" % crc32(data) if name.lower() == b"x-amz-crc32" else value)
        for name, value in message.headers
    )
    return msgspec.structs.replace(message, headers=headers, body=data)
