"""Pages of lists: `?limit=`, `?cursor=`, `next_cursor`."""

from typing import Annotated, Final, TypeVar

import msgspec
from litestar.params import QueryParameter

from api.http.request import ApiRequest
from core.dynamo.cursors import Cursors
from core.limits import PAGE_ROWS_MAX

P = TypeVar("P", bound=msgspec.Struct)

LIST: Final = "list"
"""The option of a handler that names its list, by which its cursors are bound; `{names}` stand for
path parameters and `{vectors}` for the flag of that name."""

PageLimit = Annotated[int, QueryParameter(ge=1, le=PAGE_ROWS_MAX, description="Items a page.")]
LIMIT_DEFAULT: Final = 20
CursorText = Annotated[
    str | None,
    QueryParameter(
        description="`next_cursor` of the page before: opaque, of this caller and list, good for "
        "24 hours.",
        schema_extra={"type": "string", "pattern": "^[A-Za-z0-9_-]*$"},
    ),
]


class PageCursor:
    """Where one caller is in one list."""

    def __init__(self, cursors: Cursors, caller: str, listed: str, text: str | None) -> None:
        """Opens the cursor that was sent.

        Raises:
            Unreadable: it is not one of this caller and list, or has ended.
        """
        self._cursors = cursors
        self._caller = caller
        self._listed = listed
        self._position = cursors.open(text, caller=caller, query=listed) if text else None

    def position(self, kind: type[P]) -> P | None:
        """Where the page begins; None for the first."""
        return None if self._position is None else msgspec.convert(self._position, kind)

    def next(self, position: msgspec.Struct | None) -> str | None:
        """The cursor of the next page; None when there is none."""
        if position is None:
            return None
        parts = msgspec.to_builtins(position)
        plain = {name: part for name, part in parts.items() if part is not None}
        return self._cursors.seal(plain, caller=self._caller, query=self._listed)


def provide_page(request: ApiRequest, cursor: CursorText = None) -> PageCursor:
    """The cursor of a list request; as a dependency it is opened before the limit is checked."""
    context = request.context
    vectors = request.query_params.get("vectors") != "false"
    listed: str = request.route_handler.opt[LIST]
    return PageCursor(
        context.app.resources.cursors,
        context.caller.user_id,
        listed.format(vectors=vectors, **request.path_params),
        cursor,
    )
