"""The one tree of errors, without HTTP: `api/http/problems.py` and `worker/jobs.py` map it.

`str(error)` is safe to show to the caller: it says what is wrong and what to do, and holds no
secret, no key of another row and no internal address. Of an `Unavailable` a caller is shown only
`public`: its own text may name tables, buckets and settings, for the log and for commands.
"""

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
    """The input reads, but does not hold. `errors` has one entry a field."""

    def __init__(self, detail: str, errors: tuple[FieldError, ...] = ()) -> None:
        super().__init__(detail)
        self.errors = errors


class TooLarge(K9Error):
    """The input is over a limit on its size."""


class Unauthenticated(K9Error):
    """No token, or one that does not hold. Never says which check it failed beyond its kind."""


class Forbidden(K9Error):
    """The token is good, and lacks the right."""


class NotFound(K9Error):
    """There is no such thing, or it is someone else's: the two are never told apart."""


class NotAcceptedType(K9Error):
    """The input is of a media type or content coding that is not read here."""

    def __init__(self, detail: str, codings: str | None = None) -> None:
        super().__init__(detail)
        self.codings = codings
        """The codings that are read, where it is for its coding that the input is refused."""


class OverShare(K9Error):
    """This caller has as much in flight as its share of what the process has."""

    def __init__(self, detail: str, *, retry_after_s: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


# --- what the state does not allow --------------------------------------------------------------


class Conflict(K9Error):
    """The request is fine by itself and does not fit the present state."""


class AlreadyExists(Conflict):
    """A thing of that name is there already."""


class MetricConflict(Conflict):
    """The model version was created with another metric."""


class EmptyModel(Conflict):
    """The model version has no embedding to build from."""


class BuildConflict(Conflict):
    """A build with other parameters is open for this model version."""


class BuildEnded(Conflict):
    """The build has ended: there is nothing left of it to cancel."""


class Pinned(Conflict):
    """An operator pinned the current build: no automatic build replaces it."""


class NotPromotable(Conflict):
    """The build was not published, was removed, or holds data from before a restore."""


class NoIndex(Conflict):
    """The model version has no published build yet."""


class BeingDeleted(Conflict):
    """The caller's user is being deleted: until that is done nothing of theirs is written."""


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
    """The thing has changed since the version that the caller named."""


class NotYetVisible(Conflict):
    """The index does not reflect the asked watermark yet."""


# --- what did not work, and may work later ------------------------------------------------------


class Unavailable(K9Error):
    """A dependency did not do its part in time. Trying again is right."""

    def __init__(self, detail: str, *, public: str | None = None, retry_after_s: int = 1) -> None:
        super().__init__(detail)
        self.public = public or detail
        """The detail without names that are not the caller's to know."""
        self.retry_after_s = retry_after_s


class Busy(Unavailable):
    """A dependency is there, and had no room for this just now."""


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
    """A conditional write did not hold. Repositories translate it; it never leaves them."""

    def __init__(self, item: object = None) -> None:
        super().__init__("the condition of a write did not hold")
        self.item = item
        """The row as it is, where the call asked for it (ALL_OLD); else None."""


class TransactionFailed(K9Error):
    """A transaction was cancelled. Repositories translate it; it never leaves them."""

    def __init__(self, reasons: tuple[str, ...], items: tuple[object, ...] = ()) -> None:
        super().__init__(f"a transaction was cancelled: {', '.join(reasons)}")
        self.reasons = reasons
        """One code an operation, in order: `None`, `ConditionalCheckFailed`, and so on."""
        self.items = items
        """One an operation: the row as it is, where the call asked for it (ALL_OLD); else None."""


class Rejected(K9Error):
    """DynamoDB takes no such request, however often: one of ours is wrong, or an item too large."""


class RowError(K9Error):
    """One row of many cannot be read or stored; the others can."""


class OtherGeneration(K9Error):
    """A row is of another model version of the same name. Use cases resolve it, and try again."""


class TableMissing(Unavailable):
    """A table is not there: `k9 tables create` makes it."""


# --- numbers and stored data --------------------------------------------------------------------


class NumberOutOfRange(K9Error):
    """A number does not fit DynamoDB's: 38 digits, 1e-130 to 9.99…e125."""


class Corrupt(K9Error):
    """Stored bytes are not what they should be: a wrong checksum, size, or layout."""

    def __init__(self, detail: str, file: str | None = None) -> None:
        super().__init__(detail)
        self.file = file
        """Which file of an index version it is; None where it is none, or not known."""


# --- builds -------------------------------------------------------------------------------------


class BuildFailed(K9Error):
    """The build cannot succeed as asked; trying the same again gives the same."""


class ModelGone(K9Error):
    """The model version that the build is of was deleted, or is being deleted."""


class RecallBelowTarget(BuildFailed):
    """No search parameters within the limits reached the target recall."""

    def __init__(self, recall: float, target: float, detail: str) -> None:
        super().__init__(detail)
        self.recall = recall
        self.target = target


class LeaseLost(K9Error):
    """Another worker has this build or deletion, or it has ended: stop, and change nothing."""


class SettingsError(K9Error):
    """A setting is missing or not valid. Names the variable."""
