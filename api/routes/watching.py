"""What the routes of builds and imports share: their ids, and streams of their events."""

from typing import cast

from litestar.types import ASGIApp

from api.events import Events
from api.http.request import ApiRequest
from core.errors import NotFound
from core.limits import BUILD_ID_CHARACTERS_MAX


def checked_id(row_id: str, what: str) -> str:
    """An id that there may be. Raises: NotFound: no build or import has such an id."""
    if not 1 <= len(row_id) <= BUILD_ID_CHARACTERS_MAX:
        raise NotFound(f"there is no such {what}")
    return row_id


async def watch(request: ApiRequest, events: Events, row_id: str) -> ASGIApp:
    """The answer with the events of a build or an import.

    Raises:
        NotFound: there is none.
        Overloaded: as many streams are open as may be.
    """
    context = request.context
    stream = await events.open(row_id, context.caller, head=context.method == "HEAD")
    context.leave()  # a stream is no request in flight: it has a limit of its own
    return cast("ASGIApp", stream)
