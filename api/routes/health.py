"""Whether the process runs, and whether requests should be sent to it."""

from typing import Any

from litestar import Controller, Request, Response, get
from msgspec import UNSET

from api.http.context import call_in, response
from api.wire.schemas import Alive, DependencyItem, Readiness


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
        """200 once searches can be answered, from the cache too; else 503.

        A caller with a valid token also gets the model versions and what is wrong with them.
        """
        call = call_in(request)
        health, registry = call.context.health, call.context.registry
        known = call.known_caller is not None
        readiness = Readiness(
            status="ready" if health.ready else "draining" if health.draining else "starting",
            dependencies={
                name: DependencyItem(
                    state=dependency.state,
                    since=dependency.since,
                    detail=dependency.detail if known else UNSET,
                )
                for name, dependency in health.dependencies.items()
            },
        )
        if known:
            readiness.loaded = {name: i.build_id for name, i in registry.loaded.items()}
            readiness.troubles = dict(registry.troubles)
        return response(call.reply(readiness, 200 if health.ready else 503))
