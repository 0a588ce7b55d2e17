"""Whether the process runs, and whether requests should be sent to it."""

from typing import Any

import msgspec
from litestar import Controller, Request, Response, get

from api.calls import call_in, response
from api.schemas import Alive, DependencyItem, Readiness


class HealthController(Controller):
    """Open to all, and answered however busy the process is."""

    path = "/health"
    tags = ("health",)

    @get("/live", summary="Liveness")
    async def live(self, request: Request[Any, Any, Any]) -> Response[Alive]:
        """The process runs."""
        return response(call_in(request).reply(Alive()))

    @get("/ready", summary="Readiness")
    async def ready(self, request: Request[Any, Any, Any]) -> Response[Readiness]:
        """200 once searches can be answered, from the cache too; else 503."""
        call = call_in(request)
        health = call.context.health
        readiness = Readiness(
            status="ready" if health.ready else "draining" if health.draining else "starting",
            dependencies=msgspec.convert(
                health.dependencies, dict[str, DependencyItem], from_attributes=True
            ),
            loaded={name: index.build_id for name, index in call.context.catalogue.loaded.items()},
            troubles=dict(call.context.catalogue.troubles),
        )
        return response(call.reply(readiness, 200 if health.ready else 503))
