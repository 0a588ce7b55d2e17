"""Domain Structs: frozen, with no wire format and no storage in them."""

import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

from core.attributes.values import Attributes

Metric = Literal["cosine", "ip", "l2"]
Family = Literal["exact", "hnsw_flat", "hnsw_sq8", "ivf_pq"]
BuildStatus = Literal["queued", "running", "published", "failed", "cancelled"]
RowStatus = Literal[BuildStatus, "verified"]
"""A verification is a row of the builds table too: it ends so once done, whatever it found."""
Stage = Literal[
    "queued",
    "pull",
    "validate",
    "index",
    "recall",
    "matrix",
    "files",
    "compare",
    "upload",
    "publish",
]
"""The stages of a build, in this order. `compare` is left out where there is no current version,
and `validate` to `matrix` where only attributes changed."""

ImportStatus = Literal["waiting", "queued", "running", "completed", "failed", "cancelled"]
"""`waiting`: for the object to be uploaded."""
ImportStage = Literal["upload", "queued", "download", "store"]
"""The stages of an import, in this order; `upload` only of one that waits for its object."""


def now() -> datetime:
    """The present, in UTC, to the microsecond."""
    return datetime.now(UTC)


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with six decimals: fixed width, so that it sorts as it stands."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_timestamp(text: str) -> datetime:
    """The inverse of `timestamp`.

    Raises:
        ValueError: when it is not RFC 3339.
    """
    return datetime.fromisoformat(text).astimezone(UTC)


VERSION_MAX: Final = 10**38 - 1
"""The largest version of a row: a number of DynamoDB's has 38 digits."""


def next_version(version: int) -> int:
    """The version of a row after a change: one that it never had, so that an ETag is one state.

    After the largest one it continues from a random number, as small ones have been used.
    """
    return version + 1 if version < VERSION_MAX else 1 + secrets.randbelow(10**36)


class Watermark(msgspec.Struct, frozen=True):
    """The time of a write, and the product that it wrote: a search can be asked to reflect it."""

    moment: str
    """As `timestamp` writes it, so that watermarks compare as text."""
    product_id: str | None = None
    """None for a batch: a search reflects what its shards showed after the moment."""
    generation: int | None = None
    """That of the model version; None in tokens of releases up to 23e14f8."""


class Embedding(msgspec.Struct, frozen=True, gc=False):
    """One product's vector in one model version."""

    product_id: str
    model_version: str
    vector: bytes | None
    """float32 little-endian, `dimension` x 4 bytes; None for a tombstone, or when left out."""
    dimension: int
    """0 for a tombstone."""
    updated_at: str
    deleted_at: str | None = None
    """Set on a tombstone: the product was deleted then."""
    generation: int = 0
    """That of the model version it was written to."""
    attributes: Attributes | None = None
    """None where it has none, or where they were not read."""


class StoredAttributes(msgspec.Struct, frozen=True, gc=False):
    """The attributes of one embedding, as they are stored."""

    product_id: str
    text: str
    """JSON; empty where it has none any more."""
    updated_at: str
    alone: bool = False
    """Whether the write was of attributes alone: a PATCH, after which no vector has to be read."""


class Model(msgspec.Struct, frozen=True):
    """A model version: what its first write fixed, and which build is current."""

    model_version: str
    dimension: int
    metric: Metric
    shards: int
    """Number of GSI partitions its rows are spread over. Fixed at the first write."""
    created_at: str
    epoch: int = 0
    """Raised by a restore of data; versions of another epoch are not served."""
    current_build_id: str | None = None
    current_fence: int = 0
    """The fence the current build was published under; it names the version's files."""
    open_build_id: str | None = None
    pinned: bool = False
    """An operator promoted this build: no automatic build replaces it."""
    generation: int = 0
    """Unix time in microseconds of its first write, which tells it from earlier model versions of
    the same name; 0 in records of releases up to 23e14f8."""
    deleting_at: str | None = None
    """Set when its deletion is requested; a worker then removes its rows, builds and files."""
    has_attributes: bool = False
    """Set before the first attributes of any of its embeddings are written."""
    internal_attributes: tuple[str, ...] = ()
    """Names of attributes that readers alone may ask by or get."""

    @property
    def data(self) -> tuple[int, int]:
        """Generation and epoch: an index of other data must not answer for it."""
        return self.generation, self.epoch


class BuildParameters(msgspec.Struct, frozen=True):
    """What was requested of a build. Requests with equal parameters are equal."""

    target_recall: float = 0.95
    matrix_k: int = 20
    deterministic: bool = False
    """Of no effect: every build gives the same bytes for the same rows. Kept for clients, and so
    that requests of earlier releases stay equal to their builds."""
    force: bool = False

    def again(self) -> "BuildParameters":
        """For another build like this one: `force` was requested for one build only."""
        return msgspec.structs.replace(self, force=False)


class Progress(msgspec.Struct, frozen=True):
    """How far a build is in its current stage. `total` is 0 while it is not known."""

    stage: Stage = "queued"
    done: int = 0
    total: int = 0


ProgressCallback = Callable[[Progress], None]


class ImportParameters(msgspec.Struct, frozen=True):
    """What an import reads, and how it is stored."""

    key: str
    """The object in the bucket."""
    metric: Metric | None = None
    """Of a new model version; None: the model version's own, or cosine."""
    id_column: str | None = None
    vector_column: str | None = None
    attributes: tuple[str, ...] = ()
    """Columns that are stored as attributes."""


class UploadTerms(msgspec.Struct, frozen=True):
    """What a caller said of the object that it is to upload."""

    content_length: int
    """In bytes."""
    sha256: str
    """In hex."""


class ImportProgress(msgspec.Struct, frozen=True):
    """How far an import is in its current stage. `total` is 0 while it is not known."""

    stage: ImportStage = "queued"
    done: int = 0
    total: int = 0
    unit: Literal["bytes", "rows"] = "bytes"
    """Of `done` and `total`: text has no number of rows in advance."""


class BadRow(msgspec.Struct, frozen=True):
    """One row of a file that is not valid, and why."""

    number: int
    """From 1; in JSON, the line that it begins on."""
    product_id: str | None
    reason: str


class Import(msgspec.Struct, frozen=True, tag="import"):
    """A request to store the rows of an object in the bucket, and what came of it.

    Fields that a build has too mean the same as in `Build`.
    """

    import_id: str
    model_version: str
    status: ImportStatus
    requested_at: str
    parameters: ImportParameters
    upload: UploadTerms | None = None
    """Set where a caller uploads the object after the request."""
    etag: str | None = None
    """That the object had when the import was requested, or the upload was found."""
    size_bytes: int = 0
    """Of that object."""
    progress: ImportProgress = ImportProgress()
    position: int = 0
    """Rows from the start of the file that need not be stored again: all up to it are, or are bad.
    """
    rows_stored: int = 0
    rows_bad: int = 0
    bad_rows_key: str | None = None
    """The object with all bad rows, once the import has ended, if there are any."""
    fence: int = 0
    holder: str | None = None
    lease_until_ms: int = 0
    started_at: str | None = None
    ended_at: str | None = None
    error: str | None = None
    faults: int = 0
    unreturned: int = 0
    generation: int = 0
    """That of its model version; 0 until that is known."""
    request_id: str | None = None
    trace: str | None = None

    @property
    def open(self) -> bool:
        """Whether it has yet to end."""
        return self.status in {"waiting", "queued", "running"}

    @property
    def attempt(self) -> int:
        """How often a worker has claimed it: a cancellation raises the fence as well."""
        return self.fence - (self.status == "cancelled")


class Build(msgspec.Struct, frozen=True, tag="build"):
    """A request to build a model version's index and matrix, and what came of it."""

    build_id: str
    model_version: str
    status: RowStatus
    requested_at: str
    parameters: BuildParameters
    progress: Progress = Progress()
    fence: int = 0
    """Grows with each claim; a worker with an older one has lost the build."""
    holder: str | None = None
    """Of the last claim alone."""
    lease_until_ms: int = 0
    """Unix time in milliseconds up to which the claim holds without a heartbeat."""
    started_at: str | None = None
    ended_at: str | None = None
    error: str | None = None
    manifest: dict[str, Any] | None = None
    automatic: bool = False
    """Requested by K9 itself: it does not replace a pinned build."""
    faults: int = 0
    """Attempts that were released after a transient fault."""
    unreturned: int = 0
    """Attempts claimed and not released: the running one, and each whose worker died."""
    retired_at: str | None = None
    """Set once no rule keeps the version; it is removed a grace time later."""
    removed_at: str | None = None
    """Its files are gone."""
    verifies: str | None = None
    """Of a verification: the build whose files it builds again. It publishes nothing."""
    prefix: str | None = None
    """The prefix of its files in the bucket, with the slash at the end; set when it is published.

    None in builds published by releases up to 23e14f8: see `core.names`.
    """
    generation: int = 0
    """That of its model version."""
    request_id: str | None = None
    """Of the request that opened it, for the log lines of its worker; None without one."""
    trace: str | None = None
    """The span in which it was requested, as a `traceparent` of W3C; None where tracing is off."""

    @property
    def open(self) -> bool:
        """Whether it has yet to end."""
        return self.status in {"queued", "running"}

    @property
    def attempt(self) -> int:
        """How often a worker has claimed it: a cancellation raises the fence as well."""
        return self.fence - (self.status == "cancelled")


class User(msgspec.Struct, frozen=True, tag="user"):
    """A caller's own profile."""

    user_id: str
    """The token's `sub`."""
    created_at: str
    updated_at: str
    name: str | None = None
    email: str | None = None
    avatar_url: str | None = None
    preferences: str = "{}"
    """A JSON object as text, exactly as it was sent: DynamoDB's numbers would change some."""
    version: int = 1
    """Grows with each change."""
    deleting_at: str | None = None
    """Set when its deletion is requested; a worker then removes it and its reports."""


class Report(msgspec.Struct, frozen=True, tag="report"):
    """A report, which is its user's alone."""

    id: str
    user_id: str
    title: str
    created_at: str
    updated_at: str
    author: str | None = None
    date: str | None = None
    """RFC 3339 full-date."""
    reference: str | None = None
    favorites: tuple[str, ...] = ()
    """Product ids, in order, each once."""
    version: int = 1
    """Grows with each change; its ETag."""


class Caller(msgspec.Struct, frozen=True):
    """The caller of a request, from a verified token."""

    user_id: str
    """The token's `sub`."""
    expires_at: float
    """Unix time in seconds at which the token ends."""
    reader: bool = False
    operator: bool = False
    rights: frozenset[str] = frozenset()
    """What rates may go with: `caller:` and the `sub`, `group:` and `scope:` and each name."""
