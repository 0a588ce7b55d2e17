"""The one tree of errors, without HTTP: `api/http/problems.py` and `worker/jobs.py` map it.

`str(error)` is safe to show to the caller: it says what is wrong and what to do, and has no
secret, no key of another row and no internal address. Of an `Unavailable` a caller is shown only
`public`: its own text may name tables, buckets and settings, for the log and for commands.
"""

from typing import Any, Self

import msgspec


class FieldError(msgspec.Struct, frozen=True):
    """One thing wrong with one part of the input."""

    field: str
    """A JSON path without the leading `$`: `vector`, `embeddings[3].vector`."""
    message: str


class K9Error(Exception):
    """Root of every error that K9 raises on purpose."""


# --- what the caller sent ---------------------------------------------------------------------


class Unreadable(K9Error):
    """The input cannot be read at all: not JSON, cut short, nested too deep, not UTF-8."""


class Invalid(K9Error):
    """The input can be read, but is not valid. `errors` has one entry per field."""

    def __init__(self, detail: str, errors: tuple[FieldError, ...] = ()) -> None:
        super().__init__(detail)
        self.errors = errors

    @classmethod
    def of(cls, *errors: FieldError) -> Self:
        """The error for these fields; its detail names the first three."""
        return cls("; ".join(f"{each.field} {each.message}" for each in errors[:3]), errors)


class TooLarge(K9Error):
    """The input is over a limit on its size."""


class Unauthenticated(K9Error):
    """No token, or one that is not valid. Says no more than the kind of check that failed."""


class Forbidden(K9Error):
    """The token is valid, and lacks the right."""


class NotFound(K9Error):
    """There is no such thing, or it is someone else's: the error is the same."""


class NotAcceptedType(K9Error):
    """The input has a media type or content coding that is not accepted."""

    def __init__(self, detail: str, codings: str | None = None) -> None:
        super().__init__(detail)
        self.codings = codings
        """The accepted codings, where the input is refused for its coding."""


class OverShare(K9Error):
    """This caller has as many requests in flight as its share allows."""

    retry_after_s = 1


class OverRate(OverShare):
    """This caller has sent more requests than its rate allows."""

    def __init__(self, quota: int, window_s: int, retry_after_s: int) -> None:
        super().__init__(
            f"this caller may send {quota} requests in {window_s} s; try again in {retry_after_s} s"
        )
        self.retry_after_s = retry_after_s


# --- what the state does not allow --------------------------------------------------------------


class Conflict(K9Error):
    """The request is valid, and conflicts with the present state."""


class AlreadyExists(Conflict):
    """It exists already."""


class MetricConflict(Conflict):
    """The model version was created with another metric."""


class EmptyModel(Conflict):
    """The model version has no embedding to build from."""


class BuildConflict(Conflict):
    """A build with other parameters is open for this model version."""


class BuildEnded(Conflict):
    """The build has ended, so it cannot be cancelled."""


class ImportEnded(Conflict):
    """The import has ended, so it cannot be cancelled."""


class TooManyImports(Conflict):
    """As many imports of the model version are open as may be."""


class Pinned(Conflict):
    """An operator pinned the current build: no automatic build replaces it."""


class NotPromotable(Conflict):
    """The build was not published, was removed, or is of data from before a restore."""


class NoIndex(Conflict):
    """The model version has no published build yet."""


class BeingDeleted(Conflict):
    """The caller's user is being deleted: nothing of theirs is written until that is done."""


class ModelBeingDeleted(Conflict):
    """The model version is being deleted: until that is done it is neither read nor written."""

    def __init__(self, model_version: str) -> None:
        super().__init__(
            f"{model_version} is being deleted; once that is done the name can be used again"
        )


class InFlight(Conflict):
    """A request with the same idempotency key has not been answered yet."""


class KeyReused(Invalid):
    """The idempotency key was used for another request."""


class Stale(K9Error):
    """The record has changed since the version that the caller named."""


class NotYetVisible(Conflict):
    """The index does not reflect the requested watermark yet."""


# --- what did not work, and may work later ------------------------------------------------------


class Unavailable(K9Error):
    """A dependency failed or was too slow. A retry may succeed."""

    def __init__(self, detail: str, *, public: str | None = None, retry_after_s: int = 1) -> None:
        super().__init__(detail)
        self.public = public or detail
        """The detail without internal names."""
        self.retry_after_s = retry_after_s


def public_detail(error: K9Error) -> str:
    """What a caller is shown of an error: no names of tables, buckets and settings."""
    return error.public if isinstance(error, Unavailable) else str(error)


class NewerFormat(Unavailable):
    """What is stored was written by a later release: only an upgraded process can read it."""


class Busy(Unavailable):
    """A dependency is available, and too busy for this request."""


class Overloaded(Unavailable):
    """This process has more work than it can finish."""


class PartlyStored(Unavailable):
    """DynamoDB took only a part of a batch in time. Sending all of it again is safe."""

    def __init__(self, stored: int, unprocessed: tuple[str, ...]) -> None:
        super().__init__(
            f"{stored} embeddings were stored and {len(unprocessed)} were not; "
            "sending the whole batch again is safe"
        )
        self.stored = stored
        self.unprocessed = unprocessed


# --- DynamoDB, as the repositories see it -------------------------------------------------------


class ConditionFailed(K9Error):
    """The condition of a write was not met. Repositories translate it; it never leaves them."""

    def __init__(self, item: Any = None) -> None:
        super().__init__("the condition of a write was not met")
        self.item = item
        """The existing row, where the call requested it (ALL_OLD); else None."""


class TransactionFailed(K9Error):
    """A transaction was cancelled. Repositories translate it; it never leaves them."""

    def __init__(self, reasons: tuple[str, ...], items: tuple[Any, ...] = ()) -> None:
        super().__init__(f"a transaction was cancelled: {', '.join(reasons)}")
        self.reasons = reasons
        """One code per operation, in order: `None`, `ConditionalCheckFailed`, and so on."""
        self.items = items
        """One per operation: the existing row, where the call requested it (ALL_OLD); else None."""


class Rejected(K9Error):
    """DynamoDB will never accept this request: it is wrong, or an item is too large."""


class RowError(K9Error):
    """One row of many cannot be read or stored; the others can."""


class FileError(K9Error):
    """A file cannot be read, or not from some point on; `str(error)` is one line that says why."""


class OtherGeneration(K9Error):
    """A row is of another model version of the same name. Use cases resolve it, and retry."""


class TableMissing(Unavailable):
    """A table is missing: `k9 tables create` creates it."""


# --- numbers and stored data --------------------------------------------------------------------


class NumberOutOfRange(K9Error):
    """A number does not fit DynamoDB's: 38 digits, 1e-130 to 9.99…e125."""


class Corrupt(K9Error):
    """Stored bytes are not as expected: a wrong checksum, size, or layout."""

    def __init__(self, detail: str, file: str | None = None) -> None:
        super().__init__(detail)
        self.file = file
        """The file of an index version; None where it is none, or unknown."""


# --- builds -------------------------------------------------------------------------------------


class BuildFailed(K9Error):
    """The build cannot succeed with these parameters; a retry would fail as well."""


class ModelGone(K9Error):
    """The model version that the build is of was deleted, or is being deleted."""


class RecallBelowTarget(BuildFailed):
    """No search parameters within the limits reached the target recall."""

    def __init__(self, recall: float, target: float, detail: str) -> None:
        super().__init__(detail)
        self.recall = recall
        self.target = target


class LeaseLost(K9Error):
    """Another worker has this build or deletion, or it has ended: stop, change nothing."""


class SettingsError(K9Error):
    """A setting is missing or not valid. Names the variable."""
