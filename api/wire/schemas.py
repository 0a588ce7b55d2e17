"""What goes over the wire. Limits that are settings are not here: `api/openapi.py` adds them.

Bodies that carry vectors have two forms: numbers in JSON, float32 little-endian bytes in msgpack
(numbers are taken there too).
"""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from core.models import BuildStatus, Family, Metric, Stage


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    """What callers send. A field that is unknown is refused: it is a misspelling."""


class _Answer(msgspec.Struct, kw_only=True):
    """What callers get."""


ENTRIES_CEILING: Final = 10_000
NUMBERS_CEILING: Final = 1_000_000
"""Far above every limit: what is longer is refused before it is made, which msgpack's headers
allow. The limits themselves are in settings, and name both numbers."""

Entries = Annotated[list[Raw], Meta(max_length=ENTRIES_CEILING)]
Whole = int | float
"""A whole number, which JSON may write as 10.0 too; `api.wire.decoding.whole` reads it."""
Numbers = Annotated[list[float], Meta(max_length=NUMBERS_CEILING)]


# --- embeddings ---------------------------------------------------------------------------------


class VectorBody(_Body):
    """The body of a PUT of one embedding; the vector is decoded by itself."""

    vector: Raw


class BatchBody(_Body):
    """A batch. Entries are decoded one by one, so that each bad one can be named."""

    embeddings: Entries


class BatchEntry(_Body):
    """One embedding of a batch; its vector is decoded by itself."""

    product_id: str
    vector: Raw


class EmbeddingStored(_Answer):
    """What became of a PUT."""

    product_id: str
    dimension: int
    updated_at: str
    """RFC 3339, UTC."""


class BatchStored(_Answer):
    """What became of a batch."""

    stored: int


class EmbeddingItem(_Answer, omit_defaults=True):
    """One embedding, the vector as it was sent."""

    product_id: str
    dimension: int
    updated_at: str
    vector: list[float] | None = None
    """In msgpack a float32 little-endian `bin`; absent with `?vectors=false`."""


class EmbeddingPage(_Answer):
    """A page of embeddings."""

    items: list[EmbeddingItem]
    next_cursor: str | None


# --- search -------------------------------------------------------------------------------------


class _SearchOptions(_Body, kw_only=True):
    product_id: str | UnsetType = UNSET
    k: Whole = 10
    exact: bool = False
    min_score: float | None = None
    exclude: Annotated[list[str], Meta(max_length=ENTRIES_CEILING)] = []
    min_watermark: str | None = None


class SearchBody(_SearchOptions, kw_only=True):
    """A search: exactly one of `vector`, `product_id` and `vectors`."""

    vector: Numbers | UnsetType = UNSET
    vectors: Entries | UnsetType = UNSET


class LargeSearchBody(_SearchOptions, kw_only=True):
    """The same, where the vector's numbers are counted before they are made."""

    vector: Raw | UnsetType = UNSET
    vectors: Entries | UnsetType = UNSET


class PackedSearchBody(_SearchOptions, kw_only=True):
    """The same in msgpack."""

    vector: bytes | Numbers | UnsetType = UNSET
    vectors: Entries | UnsetType = UNSET


class Neighbor(msgspec.Struct, gc=False):
    """One result."""

    product_id: str
    score: float
    """Larger is nearer: cosine, inner product, or the negated squared distance for `l2`."""


class IndexUsed(msgspec.Struct, frozen=True):
    """What answered."""

    build_id: str
    built_at: str
    """RFC 3339, UTC."""
    recall: float
    """Measured on held-out queries; 1 where every row was scored."""
    exact: bool
    """Whether this answer is exact, and not nearly so."""
    watermark: str
    """RFC 3339, UTC: every change made before it is in the index."""
    fresh: int | None
    """Rows changed since that were searched too, or null where not all of them are: they are too
    many, or were not looked for yet, or not for a while. What was deleted stays hidden, as far as
    it was read."""


class Found(_Answer):
    """The nearest products, nearest first."""

    neighbors: list[Neighbor]
    index: IndexUsed


class FoundMany(_Answer):
    """The nearest products of each vector, in the order they were sent."""

    results: list[list[Neighbor]]
    index: IndexUsed


# --- builds, models, matrix -----------------------------------------------------------------------


class BuildBody(_Body):
    """What a build is asked for."""

    target_recall: float = 0.95
    matrix_k: Whole = 20
    deterministic: bool = False
    force: bool = False


class BuildParametersItem(_Answer):
    """What a build was asked for."""

    target_recall: float = 0.95
    matrix_k: int = 20
    deterministic: bool = False
    force: bool = False


class PromoteBody(_Body):
    """Which build is to be current."""

    build_id: str


class ProgressItem(_Answer):
    """How far a build is in its present stage; `total` is 0 while it is not known."""

    stage: Stage
    done: int
    total: int


class BuildItem(_Answer):
    """One build."""

    build_id: str
    model_version: str
    status: BuildStatus
    requested_at: str
    started_at: str | None
    ended_at: str | None
    parameters: BuildParametersItem
    progress: ProgressItem
    attempt: int
    """How often a worker has claimed it."""
    error: str | None
    manifest: dict[str, Any] | None
    """Of a published build: counts, index, recall, checksums, times."""


class BuildPage(_Answer):
    """A page of builds, newest first."""

    items: list[BuildItem]
    next_cursor: str | None


class CurrentBuild(_Answer):
    """The build that answers."""

    build_id: str
    built_at: str
    rows: int
    """Embeddings in the index."""
    quarantined: int
    """Rows left out of it, for reasons that its manifest tells."""
    family: Family
    recall: float
    watermark: str


class LoadedVersion(_Answer):
    """What this process has in memory."""

    build_id: str
    rows: int
    resident_bytes: int
    loaded_at: str


class ModelItem(_Answer):
    """A model version."""

    model_version: str
    dimension: int
    metric: Metric
    created_at: str
    pinned: bool
    """An operator promoted the current build: no automatic build replaces it."""
    current_build: CurrentBuild | None
    open_build_id: str | None
    loaded: LoadedVersion | None
    deleting_at: str | None
    """Set once its deletion was asked for; until that is done it is neither read nor written."""


class ModelPage(_Answer):
    """A page of model versions, by name."""

    items: list[ModelItem]
    next_cursor: str | None


class MatrixFile(_Answer):
    """One file, for whoever has the URL."""

    url: str
    bytes: int
    sha256: str


class MatrixFiles(_Answer):
    """The matrix for people and for programs."""

    parquet: MatrixFile
    npz: MatrixFile


class MatrixSnapshot(_Answer):
    """The similarity matrix of the current build."""

    model_version: str
    build_id: str
    expires_in_s: int
    """Seconds for which the URLs are good."""
    files: MatrixFiles
    manifest: dict[str, Any]


# --- users and reports ---------------------------------------------------------------------------


class UserBody(_Body, kw_only=True):
    """A profile, or a merge patch of one: null removes."""

    name: str | UnsetType | None = UNSET
    email: str | UnsetType | None = UNSET
    avatar_url: str | UnsetType | None = UNSET
    preferences: Raw | UnsetType = UNSET
    """Any JSON object; it comes back exactly as it was sent."""


class UserItem(_Answer):
    """A profile."""

    user_id: str
    name: str | None
    email: str | None
    avatar_url: str | None
    preferences: Raw
    created_at: str
    updated_at: str
    deleting_at: str | None
    """Since when it is being deleted."""


class ReportBody(_Body, kw_only=True):
    """A report, or a merge patch of one: null removes."""

    title: str | UnsetType | None = UNSET
    author: str | UnsetType | None = UNSET
    date: str | UnsetType | None = UNSET
    reference: str | UnsetType | None = UNSET
    favorites: Annotated[list[str], Meta(max_length=ENTRIES_CEILING)] | UnsetType | None = UNSET


class ReportItem(_Answer):
    """A report."""

    id: str
    user_id: str
    title: str
    author: str | None
    date: str | None
    reference: str | None
    favorites: list[str]
    created_at: str
    updated_at: str


class ReportPage(_Answer):
    """A page of reports, newest first."""

    items: list[ReportItem]
    next_cursor: str | None


# --- health -------------------------------------------------------------------------------------


class Alive(_Answer):
    """The process runs."""

    status: Literal["alive"] = "alive"


class DependencyItem(_Answer):
    """A dependency, as its last call found it."""

    state: Literal["unknown", "ok", "failing"]
    since: str | None
    detail: str | UnsetType | None = UNSET
    """What kind of failure it was; only with a valid token."""


class Readiness(_Answer):
    """Whether searches can be answered, and the state of each dependency.

    Names of model versions and builds are given only with a valid token.
    """

    status: Literal["ready", "starting", "draining"]
    dependencies: dict[str, DependencyItem]
    loaded: dict[str, str] | UnsetType = UNSET
    """Model version → build in memory."""
    troubles: dict[str, str] | UnsetType = UNSET
    """Model version → why its current build is not in use; an earlier one may answer."""
