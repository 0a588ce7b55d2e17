"""`GET /docs` and `GET /openapi.json`, made at their first request."""

from collections.abc import Callable, Sequence
from functools import cache

import msgspec
from litestar import Controller, MediaType, Response, get

from api.openapi.document import document
from api.openapi.page import page, policy
from core.settings import Settings


def reference_controller(
    controllers: Sequence[type[Controller]], settings: Settings
) -> type[Controller]:
    """The reference of these controllers."""
    described = cache(lambda: document(controllers, settings))
    as_json: Callable[[], bytes] = cache(lambda: msgspec.json.encode(described()))
    as_page: Callable[[], bytes] = cache(lambda: page(described()))

    class ReferenceController(Controller):
        """The reference, open to all."""

        include_in_schema = False

        @get("/openapi.json")
        async def openapi(self) -> Response[bytes]:
            """For programs."""
            return Response(as_json(), media_type="application/json")

        @get("/docs")
        async def docs(self) -> Response[bytes]:
            """For people."""
            headers = {"content-security-policy": policy(), "referrer-policy": "no-referrer"}
            return Response(as_page(), media_type=MediaType.HTML, headers=headers)

    return ReferenceController
