"""How a build lies in its table, and the conditions that its writes are held to.

A verification is a row of the same table, so that it is claimed, leased and tried again like a
build; the name of its model version is under another attribute, which keeps it out of the index
that lists a model version's builds.
"""

import secrets
import time
from collections.abc import Mapping
from typing import Any

from core.dynamo import tables
from core.dynamo.expressions import Condition, equals, one_of
from core.dynamo.items import Codec
from core.dynamo.wire import AttributeValue, RequestItem
from core.models import Build

BUILD_CODEC = Codec(Build)

_VERIFIED_MODEL = "verified_model"
OPEN_STATUSES = ("queued", "running")


def new_build_id() -> str:
    """48 bits of time and 80 of chance, in hex: unique, sorted by age, good in a path."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def milliseconds(seconds_from_now: float) -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000 + int(seconds_from_now * 1000)


def open_row(build: Build) -> RequestItem:
    """The item of a build, or of a verification, that has yet to end."""
    item = {**BUILD_CODEC.encode(build), tables.OPEN: {"S": tables.OPEN_VALUE}}
    if build.verifies is not None:
        item[_VERIFIED_MODEL] = item.pop("model_version")
    return item


def decode(item: Mapping[str, AttributeValue]) -> Build:
    """The inverse of `open_row`, also of builds that have ended."""
    if _VERIFIED_MODEL in item:
        item = {**item, "model_version": item[_VERIFIED_MODEL]}
    return BUILD_CODEC.decode(item)


def ours(build: Build) -> Condition:
    """The claim is still the one that the build was read under."""
    return equals("fence", build.fence) & equals("status", "running")


def still_open(build: Build) -> Condition:
    """It has not ended, and was not claimed since it was read."""
    return equals("fence", build.fence) & one_of("status", OPEN_STATUSES)


def row_bytes(item: Any) -> int:
    """About what DynamoDB counts for an item: names and values."""
    return sum(
        len(name) + sum(len(text) for text in value.values() if isinstance(text, str | bytes))
        for name, value in item.items()
    )
