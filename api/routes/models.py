"""Model versions: what is current, what an operator makes current, and the current matrix."""

from functools import partial
from typing import Any, Final

import msgspec
from litestar import Controller, Request, Response, delete, get, post
from litestar.params import FromPath

from api.auth.tokens import operators, readers
from api.context import Context
from api.http.context import Call, call_in, response
from api.http.idempotency import answer_once, nothing
from api.http.paging import Paging
from api.http.paths import unescape
from api.http.problems import Reply, invalid
from api.routes.builds import BUILD_ID_CHARACTERS_MAX
from api.wire.decoding import Shape
from api.wire.schemas import (
    CurrentBuild,
    LoadedVersion,
    MatrixFile,
    MatrixFiles,
    MatrixSnapshot,
    ModelItem,
    ModelPage,
    PromoteBody,
)
from core import results
from core.errors import Corrupt, NoIndex, NotFound, NotPromotable, Unavailable
from core.identifiers import validate_model_version
from core.index.files import NPZ, PARQUET
from core.index.manifest import Manifest
from core.models import Build, Model, now, timestamp
from core.repositories.idempotency import Claim, completion
from core.results import LoadedBuild, ModelSummary
from core.versions import VersionRecord

URL_EXPIRES_S: Final = 300
_body: Final = Shape(PromoteBody)


class After(msgspec.Struct, frozen=True):
    """Where a page of model versions begins."""

    model_version: str


class ModelController(Controller):
    """Model versions."""

    path = "/models"
    tags = ("models",)

    @get("/", summary="List model versions")
    async def get_page(self, request: Request[Any, Any, Any]) -> Response[ModelPage]:
        """A page of model versions, by name."""
        call = call_in(request)
        paging = Paging(call, "models")
        after = paging.position(After)
        limit = paging.limit
        models = await call.context.resources.models.list_models()
        rest = [m for m in models if after is None or m.model_version > after.model_version]
        items = [_item(await _summary(call.context, model)) for model in rest[:limit]]
        further = After(items[-1].model_version) if len(rest) > limit else None
        return response(call.reply(ModelPage(items=items, next_cursor=paging.cursor(further))))

    @get("/{model_version:str}", summary="Get a model version")
    async def get_one(
        self, request: Request[Any, Any, Any], model_version: FromPath[str]
    ) -> Response[ModelItem]:
        """Dimension, metric, counts, the current build, and what this process has loaded."""
        call = call_in(request)
        name = unescape(model_version)
        validate_model_version(name)
        model = await call.context.resources.models.find_model(name)
        return response(_shown(call, await _summary(call.context, model)))

    @delete(
        "/{model_version:str}",
        guards=[operators],
        status_code=202,
        summary="Delete a model version",
    )
    async def delete(
        self, request: Request[Any, Any, Any], model_version: FromPath[str]
    ) -> Response[ModelItem]:
        """Deletes a model version with its embeddings, builds and files.

        Until a worker has removed all of it, this route's GET gives `deleting_at`, and the other
        routes of the model version are conflicts. Then the name can be used again.
        """
        call = call_in(request)

        async def act(claim: Claim | None, _sent: None) -> ModelSummary:
            name = unescape(model_version)
            validate_model_version(name)
            models = call.context.resources.models
            model = await models.get_model(name)
            marked = msgspec.structs.replace(model, deleting_at=timestamp(now()))
            summary = await _summary(call.context, marked)
            await models.mark_model(marked, completion(claim, summary))
            call.context.registry.mark(marked)
            return summary

        return response(await answer_once(call, nothing, act, partial(_shown, call, status=202)))

    @post(
        "/{model_version:str}/promote",
        guards=[operators],
        status_code=200,
        summary="Promote a build",
    )
    async def promote(
        self, request: Request[Any, Any, Any], model_version: FromPath[str]
    ) -> Response[ModelItem]:
        """Makes an earlier published build current, and pins it.

        It brings back that build's index and parameters, never old rows: what changed since is
        applied on top. No automatic build replaces it until an operator builds or promotes.
        """
        call = call_in(request)

        async def act(claim: Claim | None, body: PromoteBody) -> ModelSummary:
            name = unescape(model_version)
            validate_model_version(name)
            if not 1 <= len(body.build_id) <= BUILD_ID_CHARACTERS_MAX:
                raise invalid("build_id", f"takes 1 to {BUILD_ID_CHARACTERS_MAX} characters")
            promotions = call.context.resources.promotions
            build, model = await promotions.promotable(name, body.build_id)
            try:
                await call.context.resources.versions.check(VersionRecord.of(build))
            except NotFound:
                raise NotPromotable(
                    f"the files of build {build.build_id} are gone; build anew"
                ) from None
            except Corrupt as error:
                raise NotPromotable(
                    f"build {build.build_id} is damaged ({error}); build anew"
                ) from None
            after = msgspec.structs.replace(
                model,
                current_build_id=build.build_id,
                current_fence=build.fence,
                pinned=True,
            )
            summary = await _summary(call.context, after)
            await promotions.promote(name, body.build_id, completion(claim, summary))
            return summary

        return response(await answer_once(call, _read, act, partial(_shown, call)))

    @get("/{model_version:str}/matrix", guards=[readers], summary="Get the similarity matrix")
    async def get_matrix(
        self, request: Request[Any, Any, Any], model_version: FromPath[str]
    ) -> Response[MatrixSnapshot]:
        """The manifest of the current build, and URLs of its matrix, good for five minutes.

        The matrix is a snapshot: changes since the build are not in it.
        """
        call = call_in(request)
        name = unescape(model_version)
        validate_model_version(name)
        model = await call.context.resources.models.get_model(name)
        if model.current_build_id is None:
            raise NoIndex(f"{name} has no published build yet; POST one to its builds")
        build = await call.context.resources.builds.get_build(model.current_build_id)
        manifest = _published(build)
        if manifest is None:
            raise Corrupt(f"build {model.current_build_id} is current and has no manifest")
        record = VersionRecord.of(build)
        try:
            files = MatrixFiles(
                parquet=await _file(call.context, record, manifest, PARQUET),
                npz=await _file(call.context, record, manifest, NPZ),
            )
        except (Corrupt, NotFound) as error:
            raise Unavailable(
                f"the matrix of build {record.build_id} is lost or damaged ({error}): "
                f"`k9 rebuild {name}` makes it again"
            ) from error
        snapshot = MatrixSnapshot(
            model_version=name,
            build_id=manifest.build_id,
            expires_in_s=URL_EXPIRES_S,
            files=files,
            manifest=msgspec.to_builtins(manifest),
        )
        return response(call.reply(snapshot))


async def _read(call: Call) -> PromoteBody:
    return _body.decode(call.data, msgpack=call.msgpack_in)


async def _file(
    context: Context, record: VersionRecord, manifest: Manifest, name: str
) -> MatrixFile:
    info = manifest.files[name]
    url = await context.resources.versions.presign(record, name, info, URL_EXPIRES_S)
    return MatrixFile(url=url, bytes=info.bytes, sha256=info.sha256)


async def _summary(context: Context, model: Model) -> ModelSummary:
    loaded = context.registry.segment(model.model_version)
    if loaded is not None and loaded.data != model.data:
        loaded = None  # of an earlier model version of the name, or of before a restore
    manifest = await _manifest(context, model)
    return ModelSummary(
        model,
        None if manifest is None else _current(manifest),
        None if loaded is None else msgspec.convert(loaded, LoadedBuild, from_attributes=True),
    )


async def _manifest(context: Context, model: Model) -> Manifest | None:
    """Of the current build: from memory where it is loaded, else from the builds table."""
    if model.current_build_id is None:
        return None
    loaded = context.registry.segment(model.model_version)
    if loaded is not None and loaded.build_id == model.current_build_id:
        return loaded.manifest
    try:
        return _published(await context.resources.builds.get_build(model.current_build_id))
    except NotFound:
        return None


def _published(build: Build) -> Manifest | None:
    try:
        return msgspec.convert(build.manifest, Manifest)
    except msgspec.ValidationError:
        return None


def _current(manifest: Manifest) -> results.CurrentBuild:
    return results.CurrentBuild(
        build_id=manifest.build_id,
        built_at=manifest.built_at,
        rows=manifest.counts.rows,
        quarantined=sum(manifest.counts.quarantined.values()),
        family=manifest.index.family,
        recall=manifest.recall.value,
        watermark=manifest.watermark,
    )


def _shown(call: Call, summary: ModelSummary, status: int = 200) -> Reply:
    return call.reply(_item(summary), status)


def _item(summary: ModelSummary) -> ModelItem:
    model, current, loaded = summary.model, summary.current_build, summary.loaded
    return ModelItem(
        model_version=model.model_version,
        dimension=model.dimension,
        metric=model.metric,
        created_at=model.created_at,
        pinned=model.pinned,
        current_build=msgspec.convert(current, CurrentBuild | None, from_attributes=True),
        open_build_id=model.open_build_id,
        loaded=msgspec.convert(loaded, LoadedVersion | None, from_attributes=True),
        deleting_at=model.deleting_at,
    )
