"""What surrounds one item in files of DynamoDB: an export's line, a reply, a request, a change.

{"Item": {…}}                                      a full export to S3, get-item
{"Metadata": …, "Keys": {…}, "NewImage": {…}}      an incremental export; deleted without image
{"eventName": …, "dynamodb": {"Keys": …, …}}       a record of a stream
{"PutRequest": {"Item": {…}}}, {"Put": {…}}        batch-write-item, transact-write-items
{"DeleteRequest": {"Key": {…}}}, {"Delete": {…}}   the same, for a deletion
"""

import re
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Raw

from core.usecases.documents import is_object

MEMBERS: Final = msgspec.json.Decoder(dict[str, Raw])
_AROUND: Final = ("dynamodb", "PutRequest", "Put", "NewImage", "Item")
"""Each surrounds the next, or the item; some are left out."""
_DELETIONS: Final = ("Keys", "DeleteRequest", "Delete", "Key")
_MANIFEST: Final = {"manifestFilesS3Key", "dataFileS3Key"}
_TYPED: Final = re.compile(rb'\s*\{\s*"(?:S|N|B|BOOL|NULL|M|L|SS|NS|BS)"\s*:')
_SHOWN: Final = 5
_NAME_SHOWN: Final = 40


class Surrounded(msgspec.Struct, frozen=True):
    """An entry without what surrounds it."""

    members: dict[str, Raw]
    """Attributes of the item, or of the key of a deleted one, → their JSON text."""
    deleted: bool


def surrounded(text: bytes, key: str) -> Surrounded:
    """The item in an entry; an object that has the attribute `key` is one itself.

    Raises:
        msgspec.MsgspecError: the entry is no JSON object.
        UnicodeDecodeError: a name in it is no UTF-8.
    """
    members = MEMBERS.decode(text)
    for name in _AROUND:
        if key not in members and _holds_object(members, name):
            members = MEMBERS.decode(members[name])
    deleted = False
    for name in _DELETIONS:
        if key not in members and _holds_object(members, name):
            deleted = True
            members = MEMBERS.decode(members[name])
    return Surrounded(members, deleted)


def is_typed(members: Mapping[str, Raw]) -> bool:
    """Whether these are members of an item in DynamoDB's types, or of what surrounds one."""
    if any(_holds_object(members, name) for name in (*_AROUND, *_DELETIONS)):
        return True
    return bool(members) and all(_TYPED.match(bytes(value)) for value in members.values())


def without_key(members: Mapping[str, object], key: str) -> str:
    """Why an entry without its key is refused, with what it has instead."""
    if members.keys() & _MANIFEST:
        return "is the manifest of an export to S3; migrate the files below data/ that it names"
    if key in members:
        return f"{key} is missing (it is null)"
    names = [repr(name[:_NAME_SHOWN]) for name in list(members)[:_SHOWN]]
    more = ", …" if len(members) > _SHOWN else ""
    return f"{key} is missing (it has {', '.join(names) or 'no member'}{more})"


def _holds_object(members: Mapping[str, Raw], name: str) -> bool:
    return name in members and is_object(bytes(members[name]))
