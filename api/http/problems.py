"""The error tree as RFC 9457 problem details, in one table."""

from http.client import responses
from typing import Any, Final, cast

import msgspec
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import Send

from core import errors, telemetry
from core.errors import FieldError, Invalid, K9Error, Overloaded, Unavailable
from core.limits import BATCH_ROWS_MAX

Headers = tuple[tuple[bytes, bytes], ...]

ALWAYS: Final[Headers] = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
"""Header fields of every answer, unless it has its own."""
PROBLEM_JSON: Final = "application/problem+json"
UNKNOWN_TYPE: Final = "about:blank"
"""RFC 9457: the problem is no more than its status says."""

ERRORS_MAX: Final = BATCH_ROWS_MAX + 10
"""Entries of `errors[]` in one answer: one for each row of a batch, and some of the request."""
_OURS_FROM: Final = 500
"""Statuses from here on are our fault."""


class Problem(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A problem detail (RFC 9457), the body of every error."""

    type: str
    title: str
    status: int
    detail: str = ""
    errors: list[FieldError] | None = None
    """One entry a field, for a body that reads but is not valid."""
    stored: int | None = None
    """Of a batch: how many embeddings were stored."""
    unprocessed: list[str] | None = None
    """Of a batch: the product ids that were not stored."""


class Kind(msgspec.Struct, frozen=True):
    """What a class of errors is to a client."""

    status: int
    slug: str
    title: str


TABLE: Final[dict[type[K9Error], Kind]] = {
    errors.Unreadable: Kind(400, "unreadable", "The request cannot be read"),
    errors.Invalid: Kind(422, "invalid", "The request is not valid"),
    errors.TooLarge: Kind(413, "too-large", "The request is too large"),
    errors.NotAcceptedType: Kind(415, "unsupported-type", "The body's type is not supported"),
    errors.OverShare: Kind(429, "over-share", "The caller has too much in flight"),
    errors.OverRate: Kind(429, "over-rate", "The caller has sent too many requests"),
    errors.Unauthenticated: Kind(401, "unauthenticated", "A valid access token is needed"),
    errors.Forbidden: Kind(403, "forbidden", "The token lacks the right"),
    errors.NotFound: Kind(404, "not-found", "There is no such thing"),
    errors.Conflict: Kind(409, "conflict", "The present state does not allow it"),
    errors.AlreadyExists: Kind(409, "already-exists", "It exists already"),
    errors.MetricConflict: Kind(409, "metric-conflict", "The model version has another metric"),
    errors.EmptyModel: Kind(409, "empty-model", "There is nothing to build from"),
    errors.BuildConflict: Kind(409, "build-conflict", "Another build is open"),
    errors.BuildEnded: Kind(409, "build-ended", "The build has ended"),
    errors.ImportEnded: Kind(409, "import-ended", "The import has ended"),
    errors.TooManyImports: Kind(409, "too-many-imports", "Too many imports are open"),
    errors.Pinned: Kind(409, "pinned", "The current build is pinned"),
    errors.NotPromotable: Kind(409, "not-promotable", "The build cannot be made current"),
    errors.NoIndex: Kind(409, "no-index", "There is no index yet"),
    errors.BeingDeleted: Kind(409, "being-deleted", "The user is being deleted"),
    errors.ModelBeingDeleted: Kind(
        409, "model-being-deleted", "The model version is being deleted"
    ),
    errors.InFlight: Kind(409, "in-flight", "The same request is being answered"),
    errors.KeyReused: Kind(422, "key-reused", "The idempotency key was used before"),
    errors.Stale: Kind(412, "stale", "It has changed meanwhile"),
    errors.NotYetVisible: Kind(409, "not-yet-visible", "The write is not visible yet"),
    errors.Unavailable: Kind(503, "unavailable", "A dependency did not answer"),
    errors.Busy: Kind(503, "unavailable", "A dependency did not answer"),
    errors.NewerFormat: Kind(503, "newer-format", "A later release has changed the data"),
    errors.Overloaded: Kind(503, "overloaded", "There is more work than can be finished"),
    errors.PartlyStored: Kind(503, "partly-stored", "Only a part was stored"),
    errors.TableMissing: Kind(503, "table-missing", "A table is missing"),
    errors.NumberOutOfRange: Kind(422, "invalid", "The request is not valid"),
    # These are for the inside. One that gets out is a bug of ours, and a 500.
    **dict.fromkeys(
        (
            errors.K9Error,
            errors.ConditionFailed,
            errors.TransactionFailed,
            errors.Rejected,
            errors.RowError,
            errors.FileError,
            errors.OtherGeneration,
            errors.Corrupt,
            errors.BuildFailed,
            errors.ModelGone,
            errors.RecallBelowTarget,
            errors.LeaseLost,
            errors.SettingsError,
        ),
        Kind(500, "internal", "Something went wrong here"),
    ),
}

_log = telemetry.logger(__name__)
_INTERNAL: Final = "an unexpected error; the request id finds it in the logs"


class Reply(msgspec.Struct, frozen=True):
    """A whole answer, ready for the wire."""

    status: int
    body: bytes
    content_type: str
    headers: Headers = ()
    """Further headers, names in lower case."""

    def head(self, request_id: bytes) -> list[tuple[bytes, bytes]]:
        """All header fields."""
        return [
            (b"content-type", self.content_type.encode()),
            (b"content-length", str(len(self.body)).encode()),
            (b"x-request-id", request_id),
            *ALWAYS,
            *self.headers,
        ]

    async def send(self, send: Send, request_id: bytes) -> None:
        """Sends it in place of the application."""
        headers = self.head(request_id)
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})


def kind_of(error: K9Error) -> Kind:
    """The entry of the nearest class in the table."""
    return next(TABLE[cls] for cls in type(error).__mro__ if cls in TABLE)


def as_k9_error(error: BaseException) -> BaseException:
    """What Litestar finds wrong with a parameter is `Invalid`, as what K9 finds wrong itself."""
    if not isinstance(error, ValidationException) or not error.extra:
        return error
    extra = cast("Any", error.extra)
    errors = tuple(FieldError(each.get("key", "request"), each["message"]) for each in extra)
    return Invalid("; ".join(f"{each.field}: {each.message}" for each in errors), errors)


def problem_reply(error: BaseException) -> Reply:
    """The answer to any error. An unexpected one shows no detail."""
    error = as_k9_error(error)
    if isinstance(error, K9Error):
        return _of_ours(error)
    if isinstance(error, HTTPException):
        return _of_litestar(error)
    return _reply(Problem(type="internal", title=responses[500], status=500, detail=_INTERNAL))


def unexpected(error: BaseException) -> bool:
    """Whether the error is for the log, and not for the caller."""
    if isinstance(error, K9Error):
        return kind_of(error).status == _OURS_FROM
    return not isinstance(error, HTTPException) or error.status_code >= _OURS_FROM


def log_failure(error: BaseException, request_id: bytes, method: str) -> None:
    """Logs an unexpected error, or a dependency that did not answer."""
    if unexpected(error):
        _log.error("request failed", request_id=request_id.decode(), method=method, exc_info=error)
    elif isinstance(error, Unavailable) and not isinstance(error, Overloaded):
        _log.warning(
            "request not served",
            request_id=request_id.decode(),
            error=type(error).__name__,
            detail=str(error),
        )


def _of_ours(error: K9Error) -> Reply:
    kind = kind_of(error)
    detail = errors.public_detail(error)
    if kind.slug == "internal":
        detail = _INTERNAL
    problem = Problem(type=kind.slug, title=kind.title, status=kind.status, detail=detail)
    headers: Headers = ()
    match error:
        case errors.Invalid():
            problem.errors = list(error.errors[:ERRORS_MAX])
        case errors.PartlyStored():
            problem.stored = error.stored
            problem.unprocessed = list(error.unprocessed)
        case errors.Unauthenticated():
            headers = ((b"www-authenticate", b"Bearer"),)
        case errors.NotAcceptedType(codings=str(codings)):
            headers = ((b"accept-encoding", codings.encode()),)
    if isinstance(error, errors.Unavailable | errors.OverShare):
        headers = ((b"retry-after", str(error.retry_after_s).encode()),)
    return _reply(problem, headers)


def _of_litestar(error: HTTPException) -> Reply:
    """Litestar raises these for what it finds by itself: no such route, method, or host."""
    status = error.status_code
    slug, detail = _LITESTAR.get(status, (UNKNOWN_TYPE, responses.get(status, "Error")))
    if status >= _OURS_FROM:
        slug, detail = "internal", _INTERNAL
    problem = Problem(type=slug, title=responses.get(status, "Error"), status=status, detail=detail)
    allow = (error.headers or {}).get("allow")
    return _reply(problem, ((b"allow", allow.encode()),) if allow else ())


_LITESTAR: Final = {
    400: ("unreadable", "the request cannot be read"),
    404: ("not-found", "there is no such route"),
    405: ("method-not-allowed", "the route does not take this method"),
    413: ("too-large", "the request is too large"),
}


def _reply(problem: Problem, headers: Headers = ()) -> Reply:
    return Reply(problem.status, msgspec.json.encode(problem), PROBLEM_JSON, headers)
