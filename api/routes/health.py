"""Whether the process runs, and whether requests should be sent to it."""

from typing import Literal

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from msgspec import UNSET

from api.context import AppContext
from api.health import Health
from api.http.hooks import OPEN
from api.http.request import ApiRequest, ApiResponse
from api.wire.health import Alive, DependencyItem, Readiness


class HealthController(Controller):
    """Open to all, and answered however busy the process is."""

    path = "/health"
    tags = ("health",)
    opt = {OPEN: True}  # noqa: RUF012 - Litestar has no other place for it

    @get("/live", summary="Liveness")
    async def live(self) -> Alive:
        """The process runs."""
        return Alive()

    @get(
        "/ready",
        summary="Readiness",
        responses={503: ResponseSpec(Readiness, generate_examples=False)},
    )
    async def ready(
        self, request: ApiRequest, app: NamedDependency[AppContext]
    ) -> ApiResponse[Readiness]:
        """200 once searches can be answered, from the cache too; else 503.

        A caller with a valid token also gets the model versions and what is wrong with them.
        """
        health, registry = app.health, app.registry
        known = request.context.known_caller is not None
        readiness = Readiness(
            status=_status(health),
            dependencies={
                name: DependencyItem(
                    state=dependency.state,
                    since=dependency.since,
                    detail=dependency.detail if known else UNSET,
                )
                for name, dependency in health.dependencies.items()
            },
        )
        if health.outdated is not None:
            readiness.reason = health.outdated
        if known:
            readiness.loaded = {name: i.build_id for name, i in registry.loaded.items()}
            readiness.troubles = dict(registry.troubles)
        return ApiResponse(readiness, status_code=200 if health.ready else 503)


def _status(health: Health) -> Literal["ready", "starting", "draining", "outdated"]:
    if health.ready:
        return "ready"
    if health.draining:
        return "draining"
    return "starting" if health.outdated is None else "outdated"
