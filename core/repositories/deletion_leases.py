"""Which worker deletes a marked user or model version: a lease, kept in the marked row itself."""

import secrets

import msgspec

from core.dynamo.expressions import Condition, Update, below, equals, missing
from core.repositories.leased_rows import milliseconds

MARK = "deleting_at"
_HOLDER = "deletion_holder"
_UNTIL = "deletion_lease_until_ms"


class DeletionLease(msgspec.Struct, frozen=True):
    """One worker's claim, under one mark of one row."""

    marked_at: str
    holder: str = msgspec.field(default_factory=lambda: secrets.token_hex(16))

    @property
    def available(self) -> Condition:
        """The row has this mark, and no other worker has its lease."""
        free = missing(_UNTIL) | below(_UNTIL, milliseconds(0)) | equals(_HOLDER, self.holder)
        return equals(MARK, self.marked_at) & free

    @property
    def held(self) -> Condition:
        """The row has this mark, and this worker has its lease."""
        return equals(MARK, self.marked_at) & equals(_HOLDER, self.holder)

    @property
    def released(self) -> Update:
        """Lets another worker take the lease at once."""
        return Update(set={_UNTIL: 0})

    def renewed(self, lease_s: float) -> Update:
        """Takes the lease, or renews it, for so many seconds from now."""
        return Update(set={_HOLDER: self.holder, _UNTIL: milliseconds(lease_s)})
