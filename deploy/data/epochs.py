"""Records of model versions and builds after a restore: no earlier build is served or continues.

The index of an earlier build may have rows that the restore removed. A process that has it loaded
can only tell by the epoch of the model version.
"""

import time
from typing import Final

from core.dynamo import tables
from core.dynamo.wire import AttributeValue, Item

OPENED: Final = (tables.BUILDS, tables.IMPORTS)
"""Tables whose rows are open until their work has ended."""
_BUILD_ATTRIBUTES: Final = ("current_build_id", "current_fence", "open_build_id", "pinned")
ENDED_BY: Final = "the data was restored while this was open"


def next_epoch(*epochs: int) -> int:
    """An epoch above all of these, and above every earlier one.

    It is at least the time in seconds: the epochs of deleted tables are unknown, while indexes of
    that time may still be loaded somewhere.
    """
    return max(*epochs, int(time.time()) - 1, 0) + 1


def epoch_of(model: Item) -> int:
    """The epoch of a model version's record."""
    stored = model.get("epoch")
    return int(stored.N) if stored is not None and stored.N is not None else 0


def renewed_model(model: Item, epoch: int) -> Item:
    """The record of a model version at a new epoch, without a current build or an open one."""
    others = {name: value for name, value in model.items() if name not in _BUILD_ATTRIBUTES}
    return {**others, "epoch": AttributeValue(N=str(epoch))}


def is_open(row: Item) -> bool:
    """Whether a build or import has yet to end."""
    return tables.OPEN in row


def ended_row(row: Item, moment: str) -> Item:
    """An open build or import, cancelled at this moment; one that has ended unchanged."""
    if not is_open(row):
        return row
    others = {name: value for name, value in row.items() if name != tables.OPEN}
    return {
        **others,
        "status": AttributeValue(S="cancelled"),
        "ended_at": AttributeValue(S=moment),
        "error": AttributeValue(S=ENDED_BY),
        "lease_until_ms": AttributeValue(N="0"),
    }
