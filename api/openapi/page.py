"""`/docs`: Swagger UI over `/openapi.json`, with an Authorize button, from this server alone.

Its files come from the wheel `drf-spectacular-sidecar`. That is never imported: it needs Django.
"""

from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

from litestar.exceptions import NotFoundException

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
def asset(name: str) -> bytes:
    """A file of the page.

    Raises:
        NotFoundException: the page has no such file.
    """
    if name == "start.js":
        return _START
    if name not in ASSETS:
        raise NotFoundException
    path = f"drf_spectacular_sidecar/static/drf_spectacular_sidecar/swagger-ui-dist/{name}"
    return Path(str(distribution("drf-spectacular-sidecar").locate_file(path))).read_bytes()
