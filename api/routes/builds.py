"""Builds: request one, list them, look at one or watch it, cancel it."""

from functools import partial
from typing import Any, Final, cast

import msgspec
from litestar import Controller, Request, Response, delete, get, post
from litestar.params import FromPath
from litestar.types import ASGIApp

from api.auth.tokens import operators, readers
from api.build_events import EVENT_STREAM
from api.http.context import Call, call_in, response
from api.http.idempotency import answer_once, nothing
from api.http.paging import Paging
from api.http.paths import unescape
from api.http.problems import Reply
from api.wire.decoding import Shape, whole
from api.wire.schemas import BuildBody, BuildItem, BuildPage, BuildParametersItem, ProgressItem
from core.errors import NotFound
from core.identifiers import validate_model_version
from core.models import Build, BuildParameters, BuildStatus
from core.repositories.builds import BuildPosition
from core.repositories.idempotency import Claim

BUILD_ID_CHARACTERS_MAX: Final = 64

_body: Final = Shape(BuildBody)


class BuildController(Controller):
    """Builds of model versions."""

    tags = ("builds",)

    @post(
        "/models/{model_version:str}/builds",
        guards=[operators],
        status_code=202,
        summary="Request a build",
    )
    async def request(
        self, request: Request[Any, Any, Any], model_version: FromPath[str]
    ) -> Response[BuildItem]:
        """Requests a build of the index and the matrix; every field is optional.

        While one is open, the same request answers with it, and a different one is a conflict.
        """
        call = call_in(request)

        async def act(claim: Claim | None, parameters: BuildParameters) -> Build:
            name = unescape(model_version)
            validate_model_version(name)
            return await call.context.resources.build_service.request(name, parameters, claim)

        return response(await answer_once(call, _read, act, partial(_accepted, call)))

    @get("/models/{model_version:str}/builds", guards=[readers], summary="List builds")
    async def get_page(
        self, request: Request[Any, Any, Any], model_version: FromPath[str]
    ) -> Response[BuildPage]:
        """A page of a model version's builds, newest first."""
        call = call_in(request)
        name = unescape(model_version)
        paging = Paging(call, f"builds/{name}")
        position = paging.position(BuildPosition)
        limit = paging.limit
        validate_model_version(name)
        resources = call.context.resources
        model = await resources.models.known_model(name)
        builds, further = await resources.builds.list_builds(
            name, limit=limit, position=position, generation=model.generation
        )
        items = [item(build) for build in builds]
        return response(call.reply(BuildPage(items=items, next_cursor=paging.cursor(further))))

    @get("/builds/{build_id:str}", guards=[readers], summary="Get a build")
    async def get_one(
        self, request: Request[Any, Any, Any], build_id: FromPath[str]
    ) -> Response[BuildItem]:
        """One build: its status, progress, and manifest once it is published."""
        call = call_in(request)
        build = await call.context.resources.builds.get_build(_checked(build_id))
        return response(call.reply(item(build)))

    @get(
        "/builds/{build_id:str}/events",
        guards=[readers],
        media_type=EVENT_STREAM,
        summary="Watch a build",
    )
    async def get_events(self, request: Request[Any, Any, Any], build_id: FromPath[str]) -> ASGIApp:
        """One build as server-sent events: as it is now, and again whenever it changes.

        The stream ends with the build, or with the token; comments keep it open meanwhile.
        """
        call = call_in(request)
        stream = await call.context.watches.open(
            _checked(build_id), call.caller, head=call.method == "HEAD"
        )
        call.leave()  # a stream is no request in flight: it has a limit of its own
        return cast("ASGIApp", stream)

    @delete("/builds/{build_id:str}", guards=[operators], status_code=202, summary="Cancel a build")
    async def cancel(
        self, request: Request[Any, Any, Any], build_id: FromPath[str]
    ) -> Response[BuildItem]:
        """Cancels a build that waits or runs; one that has ended is a conflict.

        The worker that runs it stops at its next heartbeat, and can publish no more.
        """
        call = call_in(request)

        async def act(claim: Claim | None, _sent: None) -> Build:
            return await call.context.resources.builds.cancel(_checked(build_id), claim)

        return response(await answer_once(call, nothing, act, partial(_cancelled, call)))


async def _read(call: Call) -> BuildParameters:
    body = _body.decode(call.data, msgpack=call.msgpack_in) if call.data else BuildBody()
    body.matrix_k = whole(body.matrix_k, "matrix_k")
    return msgspec.convert(body, BuildParameters, from_attributes=True)


def _checked(build_id: str) -> str:
    wanted = unescape(build_id)
    if not 1 <= len(wanted) <= BUILD_ID_CHARACTERS_MAX:
        raise NotFound("there is no such build")
    return wanted


def _accepted(call: Call, build: Build) -> Reply:
    return call.reply(item(build), 202, ((b"location", f"/builds/{build.build_id}".encode()),))


def _cancelled(call: Call, build: Build) -> Reply:
    return call.reply(item(build), 202)


def item(build: Build) -> BuildItem:
    """A build as callers see it: without lease and fence.

    Raises:
        NotFound: it is a verification, which is no build to them.
    """
    if build.verifies is not None:
        raise NotFound("there is no such build")
    return BuildItem(
        build_id=build.build_id,
        model_version=build.model_version,
        status=cast("BuildStatus", build.status),
        requested_at=build.requested_at,
        started_at=build.started_at,
        ended_at=build.ended_at,
        parameters=msgspec.convert(build.parameters, BuildParametersItem, from_attributes=True),
        progress=msgspec.convert(build.progress, ProgressItem, from_attributes=True),
        attempt=build.fence - (build.status == "cancelled"),
        error=build.error,
        manifest=build.manifest,
    )
