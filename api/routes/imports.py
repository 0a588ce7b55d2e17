"""Imports: request one, list them, look at one or watch it, cancel it."""

from functools import partial
from typing import Any, TypeVar

import msgspec
from litestar import Controller, delete, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from litestar.types import ASGIApp
from msgspec import UNSET

from api.context import AppContext
from api.events import EVENT_STREAM, Events
from api.http.hooks import operators, readers
from api.http.idempotency import once
from api.http.paging import LIMIT_DEFAULT, LIST, PageCursor, PageLimit
from api.http.parameters import LOCATION, ImportIdPath, ModelVersion
from api.http.request import ApiRequest, ApiResponse
from api.routes.watching import checked_id, watch
from api.wire.imports import (
    BadRowItem,
    BadRowsFile,
    ImportBody,
    ImportItem,
    ImportPage,
    ImportReport,
    RequestedImport,
    UploadItem,
)
from core.errors import NotFound
from core.limits import FILE_URL_S
from core.models import Import, ImportParameters, UploadTerms
from core.repositories.imports import ImportPosition, ImportRepository
from core.usecases.imports import ImportService

T = TypeVar("T", bound=ImportItem)


class ImportController(Controller):
    """Imports of objects in the bucket into model versions."""

    tags = ("imports",)

    @post(
        "/models/{model_version:str}/imports",
        guards=[operators],
        status_code=202,
        summary="Import embeddings",
        response_headers=[LOCATION],
    )
    async def request(
        self,
        request: ApiRequest,
        model_version: ModelVersion,
        import_service: NamedDependency[ImportService],
        data: JSONBody[ImportBody],
    ) -> ApiResponse[RequestedImport]:
        """Imports an object in the bucket: Parquet, `.npz` or JSON lines, as `k9 import` does.

        With `upload` the answer has an address that is good for 15 minutes; the import starts once
        the object is there. The model version need not exist: the first rows make it.
        """
        data.check()
        parameters = ImportParameters(
            key=_given(data.key) or "",
            metric=_given(data.metric),
            id_column=_given(data.id_column),
            vector_column=_given(data.vector_column),
            attributes=tuple(dict.fromkeys(_given(data.attributes) or ())),
        )
        terms = None
        if data.content_length is not UNSET and data.sha256 is not UNSET:
            terms = UploadTerms(int(data.content_length), data.sha256)
        act = partial(import_service.request, model_version, parameters, terms)
        opened = await once(request, act)
        address = await import_service.upload_address(opened)
        upload = None
        if address is not None:
            upload = UploadItem(method="PUT", **msgspec.structs.asdict(address))
        return ApiResponse(
            _item(opened, RequestedImport, upload=upload),
            status_code=202,
            headers={"location": f"/imports/{opened.import_id}"},
        )

    @get(
        "/models/{model_version:str}/imports",
        guards=[readers],
        summary="List imports",
        opt={LIST: "imports/{model_version}"},
    )
    async def get_page(
        self,
        model_version: ModelVersion,
        app: NamedDependency[AppContext],
        page: NamedDependency[PageCursor],
        limit: PageLimit = LIMIT_DEFAULT,
    ) -> ImportPage:
        """A page of a model version's imports, newest first."""
        position = page.position(ImportPosition)
        missing: NotFound | None = None
        try:
            await app.resources.models.known_model(model_version)
        except NotFound as error:  # an import may come before its model version
            missing = error
        found, further = await app.resources.imports.list_imports(
            model_version, limit=limit, position=position
        )
        if missing and not found and position is None:
            raise missing
        return ImportPage(
            items=[_item(each, ImportItem) for each in found], next_cursor=page.next(further)
        )

    @get("/imports/{import_id:str}", guards=[readers], summary="Get an import")
    async def get_one(
        self, import_id: ImportIdPath, app: NamedDependency[AppContext]
    ) -> ImportReport:
        """One import: its status, progress, and the rows that are not valid."""
        imports = app.resources.imports
        found = await imports.get_import(_id(import_id))
        answer = await _report(imports, found, bad_rows=True)
        if found.bad_rows_key is not None:
            url = await app.resources.objects.presign(found.bad_rows_key, FILE_URL_S)
            answer.bad_rows_file = BadRowsFile(url=url, expires_in_s=FILE_URL_S)
        return answer

    @get(
        "/imports/{import_id:str}/events",
        guards=[readers],
        media_type=EVENT_STREAM,
        summary="Watch an import",
    )
    async def get_events(
        self, request: ApiRequest, import_id: ImportIdPath, import_events: NamedDependency[Events]
    ) -> ASGIApp:
        """One import as server-sent events: as it is now, and again whenever it changes.

        The stream ends with the import, or with the token; comments keep it open meanwhile. The bad
        rows come with the last event; until then `rows_bad` tells their number.
        """
        return await watch(request, import_events, _id(import_id))

    @delete(
        "/imports/{import_id:str}", guards=[operators], status_code=202, summary="Cancel an import"
    )
    async def cancel(
        self,
        request: ApiRequest,
        import_id: ImportIdPath,
        imports: NamedDependency[ImportRepository],
    ) -> ImportItem:
        """Cancels an import that waits or runs; one that has ended is a conflict.

        The worker that runs it stops at its next heartbeat. Rows that are stored stay.
        """
        checked = _id(import_id)
        return _item(await once(request, partial(imports.cancel, checked)), ImportItem)


async def state(imports: ImportRepository, import_id: str) -> tuple[ImportReport, bool]:
    """An import for a stream of events, and whether it has ended.

    The bad rows, up to 300 KB, are read once it has: a stream looks every second.

    Raises:
        NotFound: there is no such import.
    """
    found = await imports.get_import(import_id)
    return await _report(imports, found, bad_rows=not found.open), not found.open


async def _report(imports: ImportRepository, found: Import, *, bad_rows: bool) -> ImportReport:
    rows = await imports.get_bad_rows(found.import_id) if bad_rows and found.rows_bad else ()
    bad = msgspec.convert(rows, list[BadRowItem], from_attributes=True)
    return _item(found, ImportReport, bad_rows=bad, bad_rows_file=None)


def _item(found: Import, kind: type[T], **more: Any) -> T:
    """An import as callers see it: without lease and fence."""
    plain = msgspec.convert(found, ImportItem, from_attributes=True)
    return kind(**msgspec.structs.asdict(plain), **more)


def _given(value: Any) -> Any:
    return None if value is UNSET else value


def _id(import_id: str) -> str:
    return checked_id(import_id, "import")
