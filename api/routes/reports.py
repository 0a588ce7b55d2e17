"""Reports, each visible to its owner alone."""

from functools import partial

import msgspec
from litestar import Controller, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from api.http.idempotency import once
from api.http.paging import LIMIT_DEFAULT, LIST, PageCursor, PageLimit
from api.http.parameters import ETAG, LOCATION, IfMatch, ReportIdPath, matching_versions
from api.http.request import JSON_ONLY, ApiRequest, ApiResponse
from api.wire.records import NewReport, ReportBody, ReportItem, ReportPage
from core.identifiers import is_report_id
from core.models import Report
from core.repositories.reports import ReportPosition, ReportRepository, unknown_report
from core.usecases.reports import ReportService


class ReportController(Controller):
    """Reports."""

    path = "/reports"
    tags = ("reports",)
    opt = {JSON_ONLY: True}  # noqa: RUF012 - Litestar has no other place for it

    @post("", status_code=201, summary="Create a report", response_headers=[LOCATION, ETAG])
    async def create(
        self,
        request: ApiRequest,
        data: JSONBody[NewReport],
        report_service: NamedDependency[ReportService],
    ) -> ApiResponse[ReportItem]:
        """Creates a report of the caller's; duplicates in `favorites` are dropped."""
        fields = msgspec.to_builtins(data)  # without those that were not sent
        report = await once(request, partial(report_service.create, request.caller.user_id, fields))
        response = _shown(report, status_code=201)
        response.set_header("location", f"/reports/{report.id}")
        return response

    @get("", summary="List your reports", opt={LIST: "reports"})
    async def get_page(
        self,
        request: ApiRequest,
        reports: NamedDependency[ReportRepository],
        page: NamedDependency[PageCursor],
        limit: PageLimit = LIMIT_DEFAULT,
    ) -> ReportPage:
        """A page of the caller's reports, newest first."""
        found, further = await reports.list_reports(
            request.caller.user_id, limit=limit, position=page.position(ReportPosition)
        )
        return ReportPage(items=[_item(report) for report in found], next_cursor=page.next(further))

    @get("/{report_id:str}", summary="Get a report", response_headers=[ETAG])
    async def get_one(
        self,
        request: ApiRequest,
        report_id: ReportIdPath,
        reports: NamedDependency[ReportRepository],
    ) -> ApiResponse[ReportItem]:
        """One of the caller's reports."""
        return _shown(await reports.get_report(_id(report_id), request.caller.user_id))

    @patch("/{report_id:str}", summary="Change a report", response_headers=[ETAG])
    async def change(
        self,
        request: ApiRequest,
        report_id: ReportIdPath,
        data: JSONBody[ReportBody],
        report_service: NamedDependency[ReportService],
        if_match: IfMatch = None,
    ) -> ApiResponse[ReportItem]:
        """Applies a JSON merge patch (RFC 7396); only the version that `If-Match` names."""
        fields, versions = msgspec.to_builtins(data), matching_versions(if_match)
        report_service.validate(fields)  # 422 comes before 404
        checked = _id(report_id)
        report = await once(
            request,
            partial(report_service.change, checked, request.caller.user_id, fields, versions),
        )
        return _shown(report)

    @delete("/{report_id:str}", status_code=204, summary="Delete a report")
    async def delete(
        self,
        request: ApiRequest,
        report_id: ReportIdPath,
        report_service: NamedDependency[ReportService],
        if_match: IfMatch = None,
    ) -> None:
        """Deletes one of the caller's reports; only the version that `If-Match` names."""
        checked, versions = _id(report_id), matching_versions(if_match)
        await once(
            request, partial(report_service.delete, checked, request.caller.user_id, versions)
        )


def _id(report_id: str) -> str:
    """Raises: NotFound: no report has such an id."""
    if not is_report_id(report_id):
        raise unknown_report()
    return report_id


def _shown(report: Report, status_code: int = 200) -> ApiResponse[ReportItem]:
    headers = {"etag": f'"{report.version}"'}
    return ApiResponse(_item(report), status_code=status_code, headers=headers)


def _item(report: Report) -> ReportItem:
    return msgspec.convert(report, ReportItem, from_attributes=True)
