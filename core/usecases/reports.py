"""A caller's own reports: create, change and delete them."""

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any, Final

import msgspec

from core.errors import FieldError, Invalid, Stale, Unavailable
from core.identifiers import product_id_problem
from core.limits import AUTHOR_CHARACTERS_MAX, REFERENCE_CHARACTERS_MAX, TITLE_CHARACTERS_MAX
from core.models import Report, next_version, now, timestamp
from core.repositories.idempotency import Claim, completion
from core.repositories.reports import ReportRepository
from core.repositories.transactions import CONFLICTS
from core.results import DeletedReport
from core.settings import Settings
from core.usecases.users import text_problem

_FULL_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


class ReportService:
    """The writes to reports that their owner may make."""

    def __init__(self, reports: ReportRepository, settings: Settings) -> None:
        self._reports = reports
        self._records = settings.records

    async def create(
        self, user_id: str, fields: Mapping[str, Any], claim: Claim | None = None
    ) -> Report:
        """Creates a report of the caller's; completes the claim with it.

        Its fields are `title` (required), `author`, `date`, `reference` and `favorites`; None is
        unset.

        Raises:
            Invalid: with each field that is not valid.
            BeingDeleted: the caller's user is being deleted.
        """
        moment = timestamp(now())
        valid = self.validate({"title": None, **fields})
        new_id = secrets.token_hex(16)
        report = Report(new_id, user_id, created_at=moment, updated_at=moment, **valid)
        await self._reports.create_report(report, completion(claim, report))
        return report

    async def change(
        self,
        report_id: str,
        user_id: str,
        fields: Mapping[str, Any],
        versions: frozenset[int] | None = None,
        claim: Claim | None = None,
    ) -> Report:
        """Applies a merge patch: fields that are None are removed. Completes the claim.

        The report must have one of the expected `versions`; None: any.

        Raises:
            Invalid: with each field that is not valid.
            NotFound: there is none, or it is someone else's.
            Stale: it has none of the expected versions.
            BeingDeleted: the caller's user is being deleted.
            Unavailable: no version was expected, and it kept changing at the same time.
        """
        valid = self.validate(fields)
        async for _ in CONFLICTS.attempts():
            before = await self._reports.get_report(report_id, user_id)
            if versions is not None and before.version not in versions:
                raise Stale("the report has changed since the version that was named")
            after = msgspec.structs.replace(
                before, **valid, updated_at=timestamp(now()), version=next_version(before.version)
            )
            try:
                await self._reports.update_report(after, before.version, completion(claim, after))
            except Stale:
                if versions is not None:
                    raise
            else:
                return after
        raise Unavailable("the report kept changing at the same time; try again")

    async def delete(
        self,
        report_id: str,
        user_id: str,
        versions: frozenset[int] | None = None,
        claim: Claim | None = None,
    ) -> DeletedReport:
        """Deletes a report of the caller's.

        Raises:
            NotFound: there is none, or it is someone else's.
            Stale: it has none of the expected versions.
            BeingDeleted: the caller's user is being deleted.
        """
        expected = None
        if versions is not None and len(versions) == 1:
            (expected,) = versions
        elif versions is not None:  # DynamoDB can check for one of them alone
            expected = (await self._reports.get_report(report_id, user_id)).version
            if expected not in versions:
                raise Stale("the report has changed since the version that was named")
        deleted = DeletedReport()
        await self._reports.delete_report(report_id, user_id, expected, completion(claim, deleted))
        return deleted

    def validate(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields as a Report has them.

        Raises:
            Invalid: with each field that is not valid.
        """
        errors = []
        valid = dict(fields)
        for name, value in fields.items():
            if name == "favorites":
                valid[name], problems = self._favorites(value or ())
                errors += problems
            elif value is None:
                if name == "title":
                    errors.append(FieldError("title", "is required"))
            elif problem := _PROBLEMS[name](value):
                errors.append(FieldError(name, problem))
        if errors:
            raise Invalid.of(*errors)
        return valid

    def _favorites(self, ids: Sequence[str]) -> tuple[tuple[str, ...], list[FieldError]]:
        """The ids in order without duplicates, and their problems."""
        first: dict[str, int] = {}
        for position, product_id in enumerate(ids):
            first.setdefault(product_id, position)
        unique = tuple(first)
        limit, bytes_limit = self._records.favorites_max, self._records.favorites_bytes_max
        if len(unique) > limit:
            many = f"has {len(unique)} different ids, the most is {limit}"
            return unique, [FieldError("favorites", many)]
        errors = [
            FieldError(f"favorites[{position}]", problem)
            for product_id, position in first.items()
            if (problem := product_id_problem(product_id))
        ]
        if not errors and sum(len(product_id.encode()) for product_id in unique) > bytes_limit:
            errors = [FieldError("favorites", f"has over {bytes_limit} bytes of ids")]
        return unique, errors


def _date_problem(text: str) -> str | None:
    try:
        valid = bool(_FULL_DATE.fullmatch(text)) and bool(date.fromisoformat(text))
    except ValueError:
        valid = False
    return None if valid else "must be a full-date of RFC 3339, as 2025-09-30"


_PROBLEMS: Final[dict[str, Callable[[Any], str | None]]] = {
    "title": lambda text: text_problem(text, TITLE_CHARACTERS_MAX),
    "author": lambda text: text_problem(text, AUTHOR_CHARACTERS_MAX),
    "date": _date_problem,
    "reference": lambda text: text_problem(text, REFERENCE_CHARACTERS_MAX),
}
