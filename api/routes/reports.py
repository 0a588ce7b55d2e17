"""Reports: the caller's own, and nobody else's."""

import re
from functools import partial
from typing import Any, Final

from litestar import Controller, Request, Response, delete, get, patch, post
from litestar.params import FromPath
from msgspec import UNSET

from api.http.context import Call, call_in, response
from api.http.guards import BODY
from api.http.idempotency import answer_once, nothing
from api.http.paging import Paging
from api.http.paths import unescape
from api.http.problems import Reply
from api.wire.decoding import Shape
from api.wire.schemas import ReportBody, ReportItem, ReportPage
from core.identifiers import is_report_id
from core.models import Report
from core.repositories.idempotency import Claim
from core.repositories.reports import ReportPosition, unknown_report
from core.results import DeletedReport

_TAG: Final = re.compile(rb'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
_VERSION: Final = re.compile(rb'"([1-9][0-9]{0,37}0{0,88})"')
"""Every whole number that DynamoDB holds: 38 digits, and zeros up to 1e126."""
_FIELDS: Final = ("title", "author", "date", "reference", "favorites")
_body: Final = Shape(ReportBody)


class ReportController(Controller):
    """Reports."""

    path = "/reports"
    tags = ("reports",)
    opt = {BODY: "record"}  # noqa: RUF012 - Litestar has no other place for it

    @post("", status_code=201, summary="Create a report")
    async def create(self, request: Request[Any, Any, Any]) -> Response[ReportItem]:
        """Creates a report of the caller's; duplicates in `favorites` are dropped."""
        call = call_in(request)

        async def act(claim: Claim | None, fields: dict[str, Any]) -> Report:
            service = call.context.resources.report_service
            return await service.create(call.caller.user_id, fields, claim)

        return response(await answer_once(call, _read, act, partial(_created, call)))

    @get("", summary="List your reports")
    async def get_page(self, request: Request[Any, Any, Any]) -> Response[ReportPage]:
        """A page of the caller's reports, newest first."""
        call = call_in(request)
        paging = Paging(call, "reports")
        position = paging.position(ReportPosition)
        reports, further = await call.context.resources.reports.list_reports(
            call.caller.user_id, limit=paging.limit, position=position
        )
        items = [_item(report) for report in reports]
        return response(
            call.reply_json(ReportPage(items=items, next_cursor=paging.cursor(further)))
        )

    @get("/{report_id:str}", summary="Get a report")
    async def get_one(
        self, request: Request[Any, Any, Any], report_id: FromPath[str]
    ) -> Response[ReportItem]:
        """One of the caller's reports."""
        call = call_in(request)
        report = await call.context.resources.reports.get_report(
            _id(report_id), call.caller.user_id
        )
        return response(_shown(call, report))

    @patch("/{report_id:str}", summary="Change a report")
    async def change(
        self, request: Request[Any, Any, Any], report_id: FromPath[str]
    ) -> Response[ReportItem]:
        """Applies a JSON merge patch (RFC 7396); `If-Match` holds it to a version."""
        call = call_in(request)

        async def act(claim: Claim | None, fields: dict[str, Any]) -> Report:
            service = call.context.resources.report_service
            service.validate(fields)  # 422 comes before 404
            return await service.change(
                _id(report_id), call.caller.user_id, fields, matching(call.if_match), claim
            )

        return response(await answer_once(call, _read, act, partial(_shown, call)))

    @delete("/{report_id:str}", status_code=204, summary="Delete a report")
    async def delete(
        self, request: Request[Any, Any, Any], report_id: FromPath[str]
    ) -> Response[None]:
        """Deletes one of the caller's reports; `If-Match` holds it to a version."""
        call = call_in(request)

        async def act(claim: Claim | None, _sent: None) -> DeletedReport:
            return await call.context.resources.report_service.delete(
                _id(report_id), call.caller.user_id, matching(call.if_match), claim
            )

        return response(await answer_once(call, nothing, act, _deleted))


def matching(if_match: bytes | None) -> frozenset[int] | None:
    """The versions that an `If-Match` names; None where any will do.

    Tags of other makes, weak ones among them, match no version (RFC 9110, 13.1.1).
    """
    if if_match is None or if_match.strip() == b"*":
        return None
    versions = (_VERSION.fullmatch(tag) for tag in _TAG.findall(if_match))
    return frozenset(int(version[1]) for version in versions if version)


async def _read(call: Call) -> dict[str, Any]:
    """The fields that were sent."""
    body = _body.decode(call.data, msgpack=False)
    sent = {name: getattr(body, name) for name in _FIELDS}
    return {name: value for name, value in sent.items() if value is not UNSET}


def _id(report_id: str) -> str:
    """Raises: NotFound: no report has such an id."""
    plain = unescape(report_id)
    if not is_report_id(plain):
        raise unknown_report()
    return plain


def _created(call: Call, report: Report) -> Reply:
    location = (b"location", f"/reports/{report.id}".encode())
    return call.reply_json(_item(report), 201, (location, _tag(report)))


def _shown(call: Call, report: Report) -> Reply:
    return call.reply_json(_item(report), 200, (_tag(report),))


def _deleted(_deleted: DeletedReport) -> Reply:
    return Reply(204, b"", "text/plain")


def _tag(report: Report) -> tuple[bytes, bytes]:
    return (b"etag", f'"{report.version}"'.encode())


def _item(report: Report) -> ReportItem:
    return ReportItem(
        id=report.id,
        user_id=report.user_id,
        title=report.title,
        author=report.author,
        date=report.date,
        reference=report.reference,
        favorites=list(report.favorites),
        created_at=report.created_at,
        updated_at=report.updated_at,
    )
