"""The rows of the builds table, and the conditions of their writes.

A verification is a row of the same table, so that it is claimed, leased and retried like a build.
Its model version is under another attribute, which keeps it out of the index of a model version's
builds.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from core import telemetry
from core.dynamo import tables
from core.dynamo.items import Codec
from core.dynamo.wire import AttributeValue, Item, RequestItem
from core.errors import Corrupt, NewerFormat
from core.models import Build

BUILD_CODEC = Codec(Build)

_VERIFIED_MODEL = "verified_model"
_PROGRESS = "progress"

_log = telemetry.logger(__name__)


def open_row(build: Build) -> RequestItem:
    """The item of an open build or verification.

    Workers of releases up to 23e14f8 find no rows of a model version with a generation, and no
    files of a build with a prefix: they would fail such a build, so they must not see it.
    """
    later = bool(build.generation) or build.verifies is not None
    value = tables.OPEN_LATER_VALUE if later else tables.OPEN_VALUE
    item = {**BUILD_CODEC.encode(build), tables.OPEN: {"S": value}}
    if build.verifies is not None:
        item[_VERIFIED_MODEL] = item.pop("model_version")
    return item


def decode(item: Mapping[str, AttributeValue]) -> Build:
    """The inverse of `open_row`, for ended builds too.

    Progress in a stage that only a later release has is left out.

    Raises:
        Corrupt: it cannot be read.
        NewerFormat: a later release wrote it.
    """
    if _VERIFIED_MODEL in item:
        item = {**item, "model_version": item[_VERIFIED_MODEL]}
    try:
        return BUILD_CODEC.decode(item)
    except Corrupt:
        return BUILD_CODEC.decode({k: v for k, v in item.items() if k != _PROGRESS})


def decode_all(items: Iterable[Item]) -> list[Build]:
    """The builds of the rows that can be read: a corrupt one must not hide the others."""
    builds = []
    for item in items:
        try:
            builds.append(decode(item))
        except (Corrupt, NewerFormat) as error:
            telemetry.BUILDS_UNREADABLE.inc()
            _log.error("build row not readable", build_id=item["build_id"].S, reason=str(error))
    return builds


def row_bytes(item: Any) -> int:
    """Approximately what DynamoDB counts for an item: names and values."""
    return sum(
        len(name) + sum(len(text) for text in value.values() if isinstance(text, str | bytes))
        for name, value in item.items()
    )
