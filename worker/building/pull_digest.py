"""Digests of the rows, and of the attributes, that changed shortly before a pull.

A row's time may be earlier than a pull that did not see it yet: the table's index lags, and clocks
differ. So a build records which rows it saw that changed after its watermark, and a later pull
shows whether they are still the same.
"""

from collections.abc import Sequence
from hashlib import blake2b

from core.index.manifest import RecentRows
from core.models import Embedding, StoredAttributes

_BYTES = 16


class PullDigest:
    """Adds up the rows of one pull, or the attributes, in any order."""

    def __init__(self, since: str, changed_since: str) -> None:
        """Rows changed at `since` or later are digested, those at `changed_since` or later counted.

        Both are timestamps.
        """
        self._since = since
        self._changed_since = changed_since
        self._rows = 0
        self._sum = 0
        self.changed = 0
        """Those changed at `changed_since` or later."""

    def append(self, page: Sequence[Embedding]) -> None:
        """Adds a page. A row that appears twice, because it changed meanwhile, counts twice."""
        for row in page:
            if row.updated_at >= self._since:
                self._add(f"{row.product_id}\0{row.updated_at}\0{row.deleted_at or ''}")
        self.changed += sum(row.updated_at >= self._changed_since for row in page)

    def append_attributes(self, page: Sequence[StoredAttributes]) -> None:
        """Adds a page of attributes."""
        for each in page:
            if each.updated_at >= self._since:
                self._add(f"{each.product_id}\0{each.updated_at}\0{each.text and 'set'}")
        self.changed += sum(each.updated_at >= self._changed_since for each in page)

    def _add(self, text: str) -> None:
        self._rows += 1
        digest = blake2b(text.encode(), digest_size=_BYTES).digest()
        # A sum does not depend on the order, which shards read concurrently do not have.
        self._sum += int.from_bytes(digest)

    def recent_rows(self) -> RecentRows:
        """The digest, for the manifest."""
        digest = (self._sum % (1 << 8 * _BYTES)).to_bytes(_BYTES)
        return RecentRows(self._since, self._rows, digest.hex())
