"""Builds: request one, list them, look at one or watch it, cancel it."""

from functools import partial

import msgspec
from litestar import Controller, delete, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from litestar.types import ASGIApp

from api.context import AppContext
from api.events import EVENT_STREAM, Events
from api.http.hooks import operators, readers
from api.http.idempotency import once
from api.http.paging import LIMIT_DEFAULT, LIST, PageCursor, PageLimit
from api.http.parameters import LOCATION, BuildIdPath, ModelVersion
from api.http.request import ApiRequest, ApiResponse
from api.routes.watching import checked_id, watch
from api.wire.versions import BuildBody, BuildItem, BuildPage
from core.errors import NotFound
from core.models import Build, BuildParameters
from core.repositories.builds import BuildPosition, BuildRepository
from core.usecases.builds import BuildService


class BuildController(Controller):
    """Builds of model versions."""

    tags = ("builds",)

    @post(
        "/models/{model_version:str}/builds",
        guards=[operators],
        status_code=202,
        summary="Request a build",
        response_headers=[LOCATION],
    )
    async def request(
        self,
        request: ApiRequest,
        model_version: ModelVersion,
        build_service: NamedDependency[BuildService],
        data: JSONBody[BuildBody] = BuildBody(),  # noqa: B008 - nothing changes it
    ) -> ApiResponse[BuildItem]:
        """Requests a build of the index and the matrix; every field is optional.

        While one is open, the same request answers with it, and a different one is a conflict.
        """
        # Not strict: a whole number of JSON is a float until here.
        parameters = msgspec.convert(data, BuildParameters, strict=False, from_attributes=True)
        build = await once(request, partial(build_service.request, model_version, parameters))
        location = f"/builds/{build.build_id}"
        return ApiResponse(item(build), status_code=202, headers={"location": location})

    @get(
        "/models/{model_version:str}/builds",
        guards=[readers],
        summary="List builds",
        opt={LIST: "builds/{model_version}"},
    )
    async def get_page(
        self,
        model_version: ModelVersion,
        app: NamedDependency[AppContext],
        page: NamedDependency[PageCursor],
        limit: PageLimit = LIMIT_DEFAULT,
    ) -> BuildPage:
        """A page of a model version's builds, newest first."""
        model = await app.resources.models.known_model(model_version)
        found, further = await app.resources.builds.list_builds(
            model_version,
            limit=limit,
            position=page.position(BuildPosition),
            generation=model.generation,
        )
        return BuildPage(items=[item(build) for build in found], next_cursor=page.next(further))

    @get("/builds/{build_id:str}", guards=[readers], summary="Get a build")
    async def get_one(
        self, build_id: BuildIdPath, builds: NamedDependency[BuildRepository]
    ) -> BuildItem:
        """One build: its status, progress, and manifest once it is published."""
        return item(await builds.get_build(_id(build_id)))

    @get(
        "/builds/{build_id:str}/events",
        guards=[readers],
        media_type=EVENT_STREAM,
        summary="Watch a build",
    )
    async def get_events(
        self, request: ApiRequest, build_id: BuildIdPath, build_events: NamedDependency[Events]
    ) -> ASGIApp:
        """One build as server-sent events: as it is now, and again whenever it changes.

        The stream ends with the build, or with the token; comments keep it open meanwhile.
        """
        return await watch(request, build_events, _id(build_id))

    @delete("/builds/{build_id:str}", guards=[operators], status_code=202, summary="Cancel a build")
    async def cancel(
        self, request: ApiRequest, build_id: BuildIdPath, builds: NamedDependency[BuildRepository]
    ) -> BuildItem:
        """Cancels a build that waits or runs; one that has ended is a conflict.

        The worker that runs it stops at its next heartbeat, and can publish no more.
        """
        checked = _id(build_id)
        return item(await once(request, partial(builds.cancel, checked)))


def _id(build_id: str) -> str:
    return checked_id(build_id, "build")


def item(build: Build) -> BuildItem:
    """A build as callers see it: without lease and fence.

    Raises:
        NotFound: it is a verification, which is no build to them.
    """
    if build.verifies is not None:
        raise NotFound("there is no such build")
    return msgspec.convert(build, BuildItem, from_attributes=True)


async def state(builds: BuildRepository, build_id: str) -> tuple[BuildItem, bool]:
    """A build for a stream of events, and whether it has ended.

    Raises:
        NotFound: there is no such build.
    """
    build = await builds.get_build(build_id)
    return item(build), not build.open
