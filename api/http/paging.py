"""Pages of lists: `?limit=`, `?cursor=`, `next_cursor`."""

from typing import Final, TypeVar

import msgspec

from api.http.context import Call
from api.http.queries import Query

P = TypeVar("P", bound=msgspec.Struct)

LIMIT_DEFAULT: Final = 20


class Paging:
    """Where one caller is in one list."""

    def __init__(self, call: Call, listed: str) -> None:
        """Takes the call, and all that defines the list: its route, model version, filters."""
        self._cursors = call.context.resources.cursors
        self._caller = call.caller.user_id
        self._listed = listed
        self.query = Query(call.query)
        self._page_rows_max = call.context.settings.limits.page_rows_max

    @property
    def limit(self) -> int:
        """How many items a page has.

        Raises:
            Invalid: it is out of bounds.
        """
        most = self._page_rows_max
        return self.query.integer(
            "limit", default=min(LIMIT_DEFAULT, most), minimum=1, maximum=most
        )

    def position(self, kind: type[P]) -> P | None:
        """Where the page begins; None for the first.

        Raises:
            Unreadable: the cursor is not one of this caller and list, or has ended.
        """
        cursor = self.query.text("cursor")
        if not cursor:
            return None
        opened = self._cursors.open(cursor, caller=self._caller, query=self._listed)
        return msgspec.convert(opened, kind)

    def cursor(self, position: msgspec.Struct | None) -> str | None:
        """The cursor of the next page; None when there is none."""
        if position is None:
            return None
        parts = msgspec.to_builtins(position)
        plain = {name: part for name, part in parts.items() if part is not None}
        return self._cursors.seal(plain, caller=self._caller, query=self._listed)
