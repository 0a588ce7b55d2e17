"""Model versions: what is current, what an operator makes current, and the current matrix."""

import msgspec
from litestar import Controller, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from msgspec import UNSET

from api.context import AppContext
from api.http.hooks import operators, readers
from api.http.idempotency import once
from api.http.paging import LIMIT_DEFAULT, LIST, PageCursor, PageLimit
from api.http.parameters import ModelVersion
from api.http.request import ApiRequest
from api.wire.questions import check_name
from api.wire.versions import (
    CurrentBuild,
    LoadedVersion,
    MatrixFile,
    MatrixFiles,
    MatrixSnapshot,
    ModelItem,
    ModelPage,
    ModelPatchBody,
    PromoteBody,
)
from core import results
from core.errors import Corrupt, NoIndex, NotFound, NotPromotable, Unavailable
from core.index.files import NPZ, PARQUET
from core.index.manifest import Manifest, manifest_of
from core.limits import FILE_URL_S
from core.models import Build, Model, now, timestamp
from core.repositories.idempotency import Claim, completion
from core.results import LoadedBuild, ModelSummary
from core.versions import VersionRecord, VersionStore


class After(msgspec.Struct, frozen=True):
    """Where a page of model versions begins."""

    model_version: str


class ModelController(Controller):
    """Model versions."""

    path = "/models"
    tags = ("models",)

    @get("/", summary="List model versions", opt={LIST: "models"})
    async def get_page(
        self,
        request: ApiRequest,
        app: NamedDependency[AppContext],
        page: NamedDependency[PageCursor],
        limit: PageLimit = LIMIT_DEFAULT,
    ) -> ModelPage:
        """A page of model versions, by name."""
        after = page.position(After)
        found = await app.resources.models.list_models()
        rest = [m for m in found if after is None or m.model_version > after.model_version]
        items = [_item(request, await _summary(app, model)) for model in rest[:limit]]
        further = After(items[-1].model_version) if len(rest) > limit else None
        return ModelPage(items=items, next_cursor=page.next(further))

    @get("/{model_version:str}", summary="Get a model version")
    async def get_one(
        self, request: ApiRequest, model_version: ModelVersion, app: NamedDependency[AppContext]
    ) -> ModelItem:
        """Dimension, metric, counts, the current build, and what this process has loaded."""
        model = await app.resources.models.find_model(model_version)
        return _item(request, await _summary(app, model))

    @patch("/{model_version:str}", guards=[operators], summary="Change a model version")
    async def change(
        self,
        request: ApiRequest,
        model_version: ModelVersion,
        data: JSONBody[ModelPatchBody],
        app: NamedDependency[AppContext],
    ) -> ModelItem:
        """Sets which attributes are internal: readers alone may ask by them or get them."""
        for number, name in enumerate(data.internal_attributes):
            check_name(name, f"internal_attributes[{number}]")
        names = tuple(dict.fromkeys(data.internal_attributes))

        async def change(claim: Claim | None) -> ModelSummary:
            models = app.resources.models
            model = await models.get_model(model_version)
            changed = msgspec.structs.replace(model, internal_attributes=names)
            summary = await _summary(app, changed)
            await models.set_internal_attributes(model, names, completion(claim, summary))
            return summary

        return _item(request, await once(request, change))

    @delete(
        "/{model_version:str}",
        guards=[operators],
        status_code=202,
        summary="Delete a model version",
    )
    async def delete(
        self, request: ApiRequest, model_version: ModelVersion, app: NamedDependency[AppContext]
    ) -> ModelItem:
        """Deletes a model version with its embeddings, builds and files.

        Until a worker has removed all of it, this route's GET gives `deleting_at`, and the other
        routes of the model version are conflicts. Then the name can be used again.
        """

        async def mark(claim: Claim | None) -> ModelSummary:
            models = app.resources.models
            model = await models.get_model(model_version)
            marked = msgspec.structs.replace(model, deleting_at=timestamp(now()))
            summary = await _summary(app, marked)
            await models.mark_model(marked, completion(claim, summary))
            app.registry.mark(marked)
            return summary

        return _item(request, await once(request, mark))

    @post(
        "/{model_version:str}/promote",
        guards=[operators],
        status_code=200,
        summary="Promote a build",
    )
    async def promote(
        self,
        request: ApiRequest,
        model_version: ModelVersion,
        data: JSONBody[PromoteBody],
        app: NamedDependency[AppContext],
    ) -> ModelItem:
        """Makes an earlier published build current, and pins it.

        It brings back that build's index and parameters, never old rows: what changed since is
        applied on top. No automatic build replaces it until an operator builds or promotes.
        """

        async def promote(claim: Claim | None) -> ModelSummary:
            promotions = app.resources.promotions
            build, model = await promotions.promotable(model_version, data.build_id)
            await _check_files(app.resources.versions, build)
            after = msgspec.structs.replace(
                model, current_build_id=build.build_id, current_fence=build.fence, pinned=True
            )
            summary = await _summary(app, after)
            await promotions.promote(model_version, data.build_id, completion(claim, summary))
            return summary

        return _item(request, await once(request, promote))

    @get("/{model_version:str}/matrix", guards=[readers], summary="Get the similarity matrix")
    async def get_matrix(
        self, model_version: ModelVersion, app: NamedDependency[AppContext]
    ) -> MatrixSnapshot:
        """The manifest of the current build, and URLs of its matrix, good for five minutes.

        The matrix is a snapshot: changes since the build are not in it.
        """
        versions = app.resources.versions
        model = await app.resources.models.get_model(model_version)
        if model.current_build_id is None:
            raise NoIndex(f"{model_version} has no published build yet; POST one to its builds")
        build = await app.resources.builds.get_build(model.current_build_id)
        manifest = manifest_of(build.manifest)
        if manifest is None:
            raise Corrupt(f"build {model.current_build_id} is current and has no manifest")
        record = VersionRecord.of(build)
        try:
            files = MatrixFiles(
                parquet=await _file(versions, record, manifest, PARQUET),
                npz=await _file(versions, record, manifest, NPZ),
            )
        except (Corrupt, NotFound) as error:
            raise Unavailable(
                f"the matrix of build {record.build_id} is lost or damaged ({error}): "
                f"`k9 rebuild {model_version}` makes it again"
            ) from error
        return MatrixSnapshot(
            model_version=model_version,
            build_id=manifest.build_id,
            expires_in_s=FILE_URL_S,
            files=files,
            manifest=msgspec.to_builtins(manifest),
        )


async def _summary(app: AppContext, model: Model) -> ModelSummary:
    loaded = app.registry.segment(model.model_version)
    if loaded is not None and loaded.data != model.data:
        loaded = None  # of an earlier model version of the name, or of before a restore
    manifest = await _manifest(app, model)
    return ModelSummary(
        model,
        None if manifest is None else _current(manifest),
        None if loaded is None else msgspec.convert(loaded, LoadedBuild, from_attributes=True),
    )


async def _manifest(app: AppContext, model: Model) -> Manifest | None:
    """Of the current build: from memory where it is loaded, else from the builds table."""
    if model.current_build_id is None:
        return None
    loaded = app.registry.segment(model.model_version)
    if loaded is not None and loaded.build_id == model.current_build_id:
        return loaded.manifest
    build = await app.resources.builds.find_build(model.current_build_id)
    return None if build is None else manifest_of(build.manifest)


async def _check_files(versions: VersionStore, build: Build) -> None:
    """Raises: NotPromotable: files of the build are gone or damaged."""
    try:
        await versions.check(VersionRecord.of(build))
    except NotFound:
        raise NotPromotable(f"the files of build {build.build_id} are gone; build anew") from None
    except Corrupt as error:
        raise NotPromotable(f"build {build.build_id} is damaged ({error}); build anew") from None


async def _file(
    versions: VersionStore, record: VersionRecord, manifest: Manifest, name: str
) -> MatrixFile:
    info = manifest.files[name]
    url = await versions.presign(record, name, info, FILE_URL_S)
    return MatrixFile(url=url, bytes=info.bytes, sha256=info.sha256)


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


def _item(request: ApiRequest, summary: ModelSummary) -> ModelItem:
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
        internal_attributes=(
            list(model.internal_attributes) if request.context.caller.reader else UNSET
        ),
    )
