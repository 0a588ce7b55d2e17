"""`GET /openapi.json`, and `GET /docs`: Swagger UI over it, with an Authorize button, offline.

The page's files come from the wheel `drf-spectacular-sidecar`. That is never imported: it needs
Django.
"""

from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

import msgspec
from litestar import Controller, MediaType, Response, get
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

from api.http.hooks import OPEN
from api.openapi.document import document
from core.settings import Settings

ASSETS: Final = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
    "start.js": "text/javascript",
}
"""Names below `/docs/` and their media types."""

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page's content security policy: its own files, and requests to this server."""

PAGE: Final = b"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>K9</title>
<link rel="icon" href="/docs/favicon-32x32.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
<div id="ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</html>
"""

_START: Final = b"""SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#ui",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  docExpansion: "list",
  tryItOutEnabled: true,
  validatorUrl: null
});
"""


@cache
def _asset(name: str) -> bytes:
    """A file of the page; raises `NotFoundException` for any other."""
    if name == "start.js":
        return _START
    if name not in ASSETS:
        raise NotFoundException
    path = f"drf_spectacular_sidecar/static/drf_spectacular_sidecar/swagger-ui-dist/{name}"
    return Path(str(distribution("drf-spectacular-sidecar").locate_file(path))).read_bytes()


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
            return Response(_asset(name), media_type=ASSETS[name], headers=headers)

    return ReferenceController
