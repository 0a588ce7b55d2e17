"""Builds, model versions and the similarity matrix."""

from typing import Annotated, Any, ClassVar

from msgspec import UNSET, Meta, UnsetType

from api.wire.fields import Answer, Body, BuildId, MatrixK, Time
from api.wire.questions import AttributeName
from core.limits import ATTRIBUTES_MAX, RECALL_MAX, RECALL_MIN
from core.models import BuildStatus, Family, Metric, Stage


class BuildBody(Body, frozen=True):
    """What a build is asked for."""

    SCHEMA: ClassVar[dict[str, Any]] = {"example": {"target_recall": 0.95, "matrix_k": 20}}

    target_recall: Annotated[float, Meta(ge=RECALL_MIN, le=RECALL_MAX)] = 0.95
    matrix_k: MatrixK = 20
    deterministic: bool = False
    force: bool = False


class BuildParametersItem(Answer):
    """What a build was asked for."""

    target_recall: float = 0.95
    matrix_k: int = 20
    deterministic: bool = False
    force: bool = False


class PromoteBody(Body, frozen=True):
    """Which build is to be current."""

    SCHEMA: ClassVar[dict[str, Any]] = {"example": {"build_id": "01a206ce8d36b97501ea87038dac1d5a"}}

    build_id: BuildId


class ModelPatchBody(Body, frozen=True):
    """A change of a model version."""

    SCHEMA: ClassVar[dict[str, Any]] = {"example": {"internal_attributes": ["cost", "supplier"]}}

    internal_attributes: Annotated[
        list[AttributeName],
        Meta(
            max_length=ATTRIBUTES_MAX,
            description="All names of attributes that readers alone may filter by, boost by, group "
            "by or get; to others a search with one is not valid. Each process follows a change "
            "within about a second.",
        ),
    ]


class ProgressItem(Answer):
    """How far a build is in its present stage; `total` is 0 while it is not known."""

    stage: Stage
    done: int
    total: int


class BuildItem(Answer):
    """One build."""

    build_id: str
    model_version: str
    status: BuildStatus
    requested_at: Time
    started_at: Time | None
    ended_at: Time | None
    parameters: BuildParametersItem
    progress: ProgressItem
    attempt: int
    """How often a worker has claimed it."""
    error: str | None
    manifest: dict[str, Any] | None
    """Of a published build: counts, index, recall, checksums, times."""


class BuildPage(Answer):
    """A page of builds, newest first."""

    items: list[BuildItem]
    next_cursor: str | None


class CurrentBuild(Answer):
    """The build that answers."""

    build_id: str
    built_at: Time
    rows: int
    """Embeddings in the index."""
    quarantined: int
    """Rows left out of it, for the reasons in its manifest."""
    family: Family
    recall: float
    watermark: str


class LoadedVersion(Answer):
    """What this process has in memory."""

    build_id: str
    rows: int
    resident_bytes: int
    loaded_at: Time


class ModelItem(Answer):
    """A model version."""

    model_version: str
    dimension: int
    metric: Metric
    created_at: Time
    pinned: bool
    """An operator promoted the current build: no automatic build replaces it."""
    current_build: CurrentBuild | None
    open_build_id: str | None
    loaded: LoadedVersion | None
    deleting_at: Time | None
    """Set once its deletion was asked for; until that is done it is neither read nor written."""
    internal_attributes: list[AttributeName] | UnsetType = UNSET
    """Names of attributes that readers alone may ask by or get; shown to readers alone."""


class ModelPage(Answer):
    """A page of model versions, by name."""

    items: list[ModelItem]
    next_cursor: str | None


class MatrixFile(Answer):
    """One file, for whoever has the URL."""

    url: str
    bytes: int
    sha256: str


class MatrixFiles(Answer):
    """The matrix for people and for programs."""

    parquet: MatrixFile
    npz: MatrixFile


class MatrixSnapshot(Answer):
    """The similarity matrix of the current build."""

    model_version: str
    build_id: str
    expires_in_s: int
    """Seconds for which the URLs are good."""
    files: MatrixFiles
    manifest: dict[str, Any]
