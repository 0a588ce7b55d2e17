"""What a build costs: DynamoDB's read and write units, S3 requests, processor time and memory.

A read unit is 4 KB, or 8 KB of eventually consistent reads, as those of an index are. A write unit
is 1 KB, in the table and again in each index; a transaction takes two units in the table.
"""

import math
from collections.abc import Sequence
from typing import Final

from core.models import Build, Embedding, StoredAttributes
from core.repositories.build_rows import open_row, row_bytes
from worker.building.protocol import Usage

_ROW_OVERHEAD_BYTES: Final = 160
"""Attribute names, times, dimension and shard of an embedding, beside its id and vector."""
_ATTRIBUTES_OVERHEAD_BYTES: Final = 230
"""Attribute names, times, revision and the names of model version and shard of attributes."""
_READ_UNIT_BYTES: Final = 4096
_WRITE_UNIT_BYTES: Final = 1024
_BUILD_INDEXES: Final = 2
_TRANSACTION: Final = 2
"""Write units in a transaction for each one outside."""
_MODEL_UNITS: Final = _TRANSACTION * 1


class BuildCosts:
    """Adds up the cost of one attempt at a build."""

    def __init__(self, build: Build) -> None:
        self._row_bytes = row_bytes(open_row(build))
        self._writes = 1
        """The claim."""
        self._pulled_bytes = 0
        self._pulled_units = 0
        """Each page is a query of its own, rounded up."""
        self.rows = 0
        self.items = 0
        """Rows and attributes."""

    def count_heartbeat(self) -> None:
        """A heartbeat was written."""
        self._writes += 1

    def count_page(self, page: list[Embedding]) -> None:
        """A page of embeddings was read."""
        self.rows += len(page)
        self.items += len(page)
        self._count_bytes(sum(_row_bytes(row) for row in page))

    def count_attributes(self, page: Sequence[StoredAttributes]) -> None:
        """A page of attributes was read."""
        self.items += len(page)
        self._count_bytes(sum(_attributes_bytes(each) for each in page))

    def _count_bytes(self, size: int) -> None:
        self._pulled_bytes += size
        self._pulled_units += math.ceil(size / _READ_UNIT_BYTES)

    def total(self, usage: Usage, s3_requests: int, manifest_bytes: int) -> dict[str, float]:
        """For the manifest; includes the transaction that publishes it."""
        beat = _units(self._row_bytes) * (1 + _BUILD_INDEXES)
        with_manifest = _units(self._row_bytes + manifest_bytes)
        published = with_manifest * (_TRANSACTION + 1) + _units(self._row_bytes)
        return {
            "rows_read": self.rows,
            "read_bytes": self._pulled_bytes,
            "read_units": self._pulled_units / 2,
            "write_units": self._writes * beat + published + _MODEL_UNITS,
            "s3_requests": s3_requests,
            "processor_s": round(usage.processor_s, 3),
            "peak_memory_bytes": usage.peak_bytes,
        }


def _row_bytes(row: Embedding) -> int:
    """A vector that was left out of the reply is paid for as well."""
    return len(row.product_id.encode()) + 4 * row.dimension + _ROW_OVERHEAD_BYTES


def _attributes_bytes(each: StoredAttributes) -> int:
    return len(each.product_id.encode()) + len(each.text.encode()) + _ATTRIBUTES_OVERHEAD_BYTES


def _units(size: int) -> int:
    return math.ceil(size / _WRITE_UNIT_BYTES)
