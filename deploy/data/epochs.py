"""What a restore of data makes of the rows that speak of builds: none of them is served or goes on.

A build's files may have been made from rows that the restore took away, and a version that is
mapped somewhere says so by its epoch alone.
"""

import time
from typing import Final

from core.dynamo import tables
from core.dynamo.wire import AttributeValue, Item

_OF_BUILDS: Final = ("current_build_id", "current_fence", "open_build_id", "pinned")
ENDED_BY: Final = "the data was restored while this build was open"


def next_epoch(*epochs: int) -> int:
    """An epoch above all of these, and above every one that was before.

    The time in seconds is part of it: tables that were removed took their epochs along, while
    versions of those days may still be mapped.
    """
    return max(*epochs, int(time.time()) - 1, 0) + 1


def epoch_of(model: Item) -> int:
    """The epoch of a model version's record."""
    stored = model.get("epoch")
    return int(stored.N) if stored is not None and stored.N is not None else 0


def renewed_model(model: Item, epoch: int) -> Item:
    """The record of a model version at a new epoch, without a current build or an open one."""
    kept = {name: value for name, value in model.items() if name not in _OF_BUILDS}
    return {**kept, "epoch": AttributeValue(N=str(epoch))}


def is_open(build: Item) -> bool:
    """Whether a build has not ended."""
    return tables.OPEN in build


def ended_build(build: Item, moment: str) -> Item:
    """An open build, cancelled at this moment; one that has ended is as it was."""
    if not is_open(build):
        return build
    kept = {name: value for name, value in build.items() if name != tables.OPEN}
    return {
        **kept,
        "status": AttributeValue(S="cancelled"),
        "ended_at": AttributeValue(S=moment),
        "error": AttributeValue(S=ENDED_BY),
        "lease_until_ms": AttributeValue(N="0"),
    }
