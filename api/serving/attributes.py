"""Attributes of the products at one moment: the segment's, and over them what changed since.

Changed attributes mask no row and fill no buffer of vectors. They are columns in memory, to which
an `AttributeBuffer` adds; an `AttributeSnapshot` uses as many of their rows as there were, and
never changes.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from api.serving.segment import Segment
from core import telemetry
from core.attributes.appended_columns import AppendedColumns, GrowingArray
from core.attributes.filters import Filter
from core.attributes.selection import Mask
from core.attributes.values import Attributes, canonical_text, decode_attributes
from core.errors import Corrupt
from core.models import StoredAttributes

_ENTRY_BYTES: Final = 450
"""Of one change besides its values and its text, about."""
_SLOT_BYTES: Final = 150
"""Of a product that the segment does not have."""
_COMPACT_ROWS: Final = 4096
"""Fewer changes are never gone through for those that were changed again."""

_log = telemetry.logger(__name__)


_Reading = tuple[int, Attributes, StoredAttributes, bool]
"""The slot of a product, its attributes, as they are stored, and whether its row was read first."""


@dataclass(slots=True)
class _Changes:
    """What was read, one row for each reading; only ever added to."""

    columns: AppendedColumns = field(default_factory=AppendedColumns)
    slots: GrowingArray = field(default_factory=lambda: GrowingArray(np.int64))
    stored: list[StoredAttributes] = field(default_factory=list)
    with_row: list[bool] = field(default_factory=list)
    """Whether the product's row was read before it."""
    previous: list[int] = field(default_factory=list)
    """The row of the reading of the same product before, or -1."""
    last: dict[str, int] = field(default_factory=dict)
    """Product → its last row."""
    text_bytes: int = 0

    def row_of(self, product_id: str, used: int) -> int:
        """The last one of a product among the first rows, -1 if there is none."""
        row = self.last.get(product_id, -1)
        while row >= used:
            row = self.previous[row]
        return row

    def extend(self, readings: Sequence[_Reading]) -> None:
        """Adds a row for each."""
        self.columns.extend([attributes for _, attributes, _, _ in readings])
        self.slots.extend([slot for slot, _, _, _ in readings])
        for _, _, stored, with_row in readings:
            self.previous.append(self.last.get(stored.product_id, -1))
            self.last[stored.product_id] = len(self.stored)
            self.stored.append(stored)
            self.with_row.append(with_row)
            self.text_bytes += len(stored.text)

    def compacted(self, used: int) -> "_Changes":
        """The first rows, without what was changed again among them. Thread-safe."""
        slots = self.slots.first(used)
        _, first = np.unique(slots[::-1], return_index=True)
        last = np.sort(used - 1 - first)
        kept = _Changes(self.columns.kept(last, used))
        kept.slots.extend(slots[last])
        rows = last.tolist()
        kept.stored = [self.stored[row] for row in rows]
        kept.with_row = [self.with_row[row] for row in rows]
        kept.previous = [-1] * len(rows)
        kept.last = {stored.product_id: row for row, stored in enumerate(kept.stored)}
        kept.text_bytes = sum(len(stored.text) for stored in kept.stored)
        return kept


@dataclass(frozen=True, slots=True)
class AttributeSnapshot:
    """The attributes of the products at one moment.

    Each product has a slot: the row of the segment, or a number after those.
    """

    segment: Segment
    _changes: _Changes = field(default_factory=_Changes)
    _used: int = 0
    _added: int = 0
    """Slots after the segment's rows."""

    @property
    def changed(self) -> int:
        """Changes that a filter is evaluated for, besides the segment's rows."""
        return self._used

    def select(self, condition: Filter) -> Mask:
        """Bool (slots,): the products that match, which may have no row any more."""
        mask = self.segment.select(condition)
        if self._added:
            added = np.full(self._added, condition.matches({}), dtype=np.bool_)
            mask = np.concatenate((mask, added))
        if self._used:
            # Of several changes of one product the last is in effect: numpy assigns in order.
            slots = self._changes.slots.first(self._used)
            mask[slots] = self._changes.columns.select(condition, self._used)
        return mask

    def of(self, product_id: str, row: int | None) -> Attributes:
        """The attributes of a product, and its row in the segment, None if it has none.

        Raises:
            Corrupt: the segment's cannot be read.
        """
        change = self._changes.row_of(product_id, self._used)
        if change >= 0:
            return _decoded(self._changes.stored[change])
        return {} if row is None else self.segment.attributes(row)

    def reflects(self, product_id: str, moment: str) -> bool:
        """Whether they are as a write at this moment left them, and its row was read with them.

        The row is not needed where attributes alone were written.
        """
        change = self._changes.row_of(product_id, self._used)
        if change < 0:
            return False
        stored = self._changes.stored[change]
        return stored.updated_at == moment and (stored.alone or self._changes.with_row[change])


class AttributeBuffer:
    """The changed attributes of one segment's products, filled by one task."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self.polled = False
        """Whether all that changed since `watermark` was read once."""
        self.watermark = segment.manifest.watermark if segment.has_attributes else ""
        """Every change before this time is in the segment; empty where it has no attributes."""
        self.overflowed = False
        """Too much changed: the segment's are used as they are."""
        self.changes = _Changes()
        self._slots: dict[str, int] = {}
        """Of products that the segment does not have; only ever added to."""

    @property
    def resident_bytes(self) -> int:
        """Memory that it takes, about."""
        changes = self.changes
        return (
            changes.columns.nbytes
            + changes.text_bytes
            + _ENTRY_BYTES * len(changes.stored)
            + _SLOT_BYTES * len(self._slots)
        )

    @property
    def product_ids(self) -> list[str]:
        """The products of which something changed."""
        return list(self.changes.last)

    def slot(self, product_id: str, row: int | None) -> int:
        """The slot of a product, whose row in the segment is given."""
        if row is not None:
            return row
        return self._slots.setdefault(product_id, self._segment.rows + len(self._slots))

    def differing(self, page: Sequence[StoredAttributes]) -> list[str]:
        """The products of which the page of an index differs from what is known. Thread-safe."""
        if self.overflowed:
            return []
        changes = self.changes
        found = []
        for stored in page:
            at = changes.last.get(stored.product_id)
            if at is not None:
                if changes.stored[at].updated_at != stored.updated_at:
                    found.append(stored.product_id)
            elif self._is_new(_decoded(stored), self._segment.row_of(stored.product_id)):
                found.append(stored.product_id)
        return found

    def apply(
        self,
        found: Mapping[str, StoredAttributes | None],
        with_row: Mapping[str, object],
        *,
        added: bool = True,
    ) -> None:
        """Takes attributes as a consistent read found them; None: there is no such item.

        The last one applied wins, as for rows. `with_row` has the products whose row was read
        before; `added` tells whether those that the segment does not have matter.
        """
        if self.overflowed:
            return
        readings: list[_Reading] = []
        changes = self.changes
        slots = changes.slots.all()
        for product_id, item in found.items():
            stored = item or StoredAttributes(product_id, "", "")
            attributes = _decoded(stored)
            before = changes.last.get(product_id)
            if before is None:
                row = self._segment.row_of(product_id)
                if (row is None and not added) or not self._is_new(attributes, row):
                    continue
                slot = self.slot(product_id, row)
            elif changes.stored[before] == stored and (
                changes.with_row[before] or product_id not in with_row
            ):
                continue
            else:
                slot = int(slots[before])
            readings.append((slot, attributes, stored, product_id in with_row))
        if readings:
            changes.extend(readings)

    async def compact(self) -> None:
        """Drops what was changed again, where it is a third of all, in a thread.

        What is applied meanwhile is kept.
        """
        changes, used = self.changes, len(self.changes.stored)
        if used < _COMPACT_ROWS or 3 * len(changes.last) >= 2 * used:
            return
        kept = await asyncio.to_thread(changes.compacted, used)
        if self.changes is changes:  # it has not overflowed
            newer = zip(
                changes.slots.all()[used:].tolist(),
                map(_decoded, changes.stored[used:]),
                changes.stored[used:],
                changes.with_row[used:],
                strict=True,
            )
            kept.extend(list(newer))
            self.changes = kept

    def carry_over(self, older: "AttributeBuffer", product_ids: Sequence[str]) -> None:
        """Takes what the buffer of an older segment knows and this segment may not have."""
        changes = older.changes
        rows = {product_id: changes.last[product_id] for product_id in product_ids}
        newer = {
            product_id: changes.stored[row]
            for product_id, row in rows.items()
            if product_id not in self.changes.last
            and (changes.stored[row].updated_at or self.watermark) >= self.watermark
        }
        with_row = {name: None for name, row in rows.items() if changes.with_row[row]}
        self.apply(newer, with_row)

    def overflow(self) -> None:
        """Drops all: a filter sees the segment's attributes, until the next build."""
        self.changes = _Changes()
        self.overflowed = True

    def snapshot(self) -> AttributeSnapshot:
        """What is known now."""
        used = len(self.changes.stored)
        return AttributeSnapshot(self._segment, self.changes, used, len(self._slots))

    def _is_new(self, attributes: Attributes, row: int | None) -> bool:
        """Whether the attributes of a product of which none changed are not the segment's."""
        if row is None:
            return bool(attributes)
        return canonical_text(attributes) != self._segment.attributes_text(row)


def _decoded(stored: StoredAttributes) -> Attributes:
    """The attributes; none where they cannot be read, which stops no other product."""
    if not stored.text:
        return {}
    try:
        return decode_attributes(stored.text)
    except Corrupt as error:
        _log.warning("attributes cannot be read", product_id=stored.product_id, why=str(error))
        return {}
