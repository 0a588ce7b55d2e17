"""Unwraps one item of DynamoDB's JSON from an export's line, a reply, a request or a change.

{"Item": {…}}                                      a full export to S3, get-item
{"Metadata": …, "Keys": {…}, "NewImage": {…}}      an incremental export; without image a deletion
{"eventName": …, "dynamodb": {"Keys": …, …}}       a stream record
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
_WRAPPERS: Final = ("dynamodb", "PutRequest", "Put", "NewImage", "Item")
"""From the outermost in; not all of them are present."""
_DELETIONS: Final = ("Keys", "DeleteRequest", "Delete", "Key")
_MANIFEST: Final = {"manifestFilesS3Key", "dataFileS3Key"}
_TYPED: Final = re.compile(rb'\s*\{\s*"(?:S|N|B|BOOL|NULL|M|L|SS|NS|BS)"\s*:')
_SHOWN: Final = 5
_NAME_SHOWN: Final = 40


class Unwrapped(msgspec.Struct, frozen=True):
    """An item without its wrappers."""

    members: dict[str, Raw]
    """The JSON text of each attribute of the item, or of the key of a deleted one."""
    deleted: bool


def unwrap(text: bytes, key: str) -> Unwrapped:
    """The item in an entry; an object that has the attribute `key` is the item itself.

    Raises:
        msgspec.MsgspecError: the entry is not a JSON object.
        UnicodeDecodeError: a name in it is not UTF-8.
    """
    members = MEMBERS.decode(text)
    for name in _WRAPPERS:
        if key not in members and _has_object(members, name):
            members = MEMBERS.decode(members[name])
    deleted = False
    for name in _DELETIONS:
        if key not in members and _has_object(members, name):
            deleted = True
            members = MEMBERS.decode(members[name])
    return Unwrapped(members, deleted)


def is_typed(members: Mapping[str, Raw]) -> bool:
    """Whether these are members of an item in DynamoDB's types, or of a wrapper of one."""
    if any(_has_object(members, name) for name in (*_WRAPPERS, *_DELETIONS)):
        return True
    return bool(members) and all(_TYPED.match(bytes(value)) for value in members.values())


def key_problem(members: Mapping[str, object], key: str) -> str:
    """Why an entry without the key is rejected, with the members that it has."""
    if members.keys() & _MANIFEST:
        return "is the manifest of an export to S3; migrate the files in data/ that it names"
    if key in members:
        return f"{key} is missing (it is null)"
    names = [repr(name[:_NAME_SHOWN]) for name in list(members)[:_SHOWN]]
    more = ", …" if len(members) > _SHOWN else ""
    return f"{key} is missing (it has {', '.join(names) or 'no member'}{more})"


def _has_object(members: Mapping[str, Raw], name: str) -> bool:
    return name in members and is_object(bytes(members[name]))
