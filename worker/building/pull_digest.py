"""Rows that changed shortly before they were pulled, told apart from those that changed since.

A row's time may lie before a pull that could not show it yet: the table's index is late, and clocks
differ. So a build notes which rows it saw that changed after its watermark, and whoever pulls again
sees whether they are still the same ones.
"""

from collections.abc import Sequence
from hashlib import blake2b

from core.index.manifest import RecentRows
from core.models import Embedding

_BYTES = 16


class Recent:
    """Adds up the rows of one pull, in whatever order they come."""

    def __init__(self, since: str, later: str) -> None:
        """Rows that changed at `since` or later are noted; those at `later` or later counted."""
        self._since = since
        self._later = later
        self._rows = 0
        self._sum = 0
        self.changed = 0
        """Rows of `later`, and after it."""

    def append(self, page: Sequence[Embedding]) -> None:
        """Takes a page. Of a row that comes twice, as it changes meanwhile, both count."""
        for row in page:
            if row.updated_at >= self._since:
                self._rows += 1
                text = f"{row.product_id}\0{row.updated_at}\0{row.deleted_at or ''}"
                digest = blake2b(text.encode(), digest_size=_BYTES).digest()
                # A sum does not depend on the order, which shards read side by side do not have.
                self._sum += int.from_bytes(digest)
        self.changed += sum(row.updated_at >= self._later for row in page)

    def noted(self) -> RecentRows:
        """What a manifest keeps of them."""
        digest = (self._sum % (1 << 8 * _BYTES)).to_bytes(_BYTES)
        return RecentRows(self._since, self._rows, digest.hex())
