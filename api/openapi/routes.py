"""`GET /openapi.json` and `GET /docs`."""

from collections.abc import Callable, Sequence
from functools import cache

import msgspec
from litestar import Controller, MediaType, Response, get
from litestar.params import FromPath

from api.http.hooks import OPEN
from api.openapi.document import document
from api.openapi.page import ASSETS, PAGE, POLICY, asset
from core.settings import Settings


def reference_controller(
    controllers: Sequence[type[Controller]], settings: Settings
) -> type[Controller]:
    """The reference of these controllers."""
    as_json: Callable[[], bytes] = cache(
        lambda: msgspec.json.encode(document(controllers, settings))
    )

    class ReferenceController(Controller):
        """The reference, open to all."""

        include_in_schema = False
        opt = {OPEN: True}  # noqa: RUF012 - Litestar has no other place for it

        @get("/openapi.json")
        async def openapi(self) -> Response[bytes]:
            """The OpenAPI document."""
            return Response(as_json(), media_type="application/json")

        @get("/docs")
        async def docs(self) -> Response[bytes]:
            """Swagger UI."""
            headers = {"content-security-policy": POLICY, "referrer-policy": "no-referrer"}
            return Response(PAGE, media_type=MediaType.HTML, headers=headers)

        @get("/docs/{name:str}")
        async def docs_file(self, name: FromPath[str]) -> Response[bytes]:
            """A file of Swagger UI."""
            headers = {"cache-control": "public, max-age=3600"}
            return Response(asset(name), media_type=ASSETS[name], headers=headers)

    return ReferenceController
