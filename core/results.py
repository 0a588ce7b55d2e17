"""What the writes of the API return, and what is stored of them under an idempotency key.

They are stored as JSON, and read by other releases while an upgrade runs and for a day after it.
So a field is added with a default only, and a tag is never given to anything else.
"""

import msgspec

from core.errors import FieldError
from core.models import Build, Family, Model, Report, User, Watermark


class StoredEmbedding(msgspec.Struct, frozen=True, tag="stored-embedding"):
    """An embedding was stored."""

    product_id: str
    dimension: int
    updated_at: str
    generation: int
    """Of the model version that it was written to."""
    created: bool
    """True when there was no such embedding, or it had been deleted."""

    @property
    def watermark(self) -> Watermark:
        """By which a search can ask to reflect the write."""
        return Watermark(self.updated_at, self.product_id, self.generation)


class DeletedEmbedding(msgspec.Struct, frozen=True, tag="deleted-embedding"):
    """An embedding was deleted: a tombstone is in its place."""

    product_id: str
    deleted_at: str
    generation: int
    """Of the model version that it was deleted from."""

    @property
    def watermark(self) -> Watermark:
        """By which a search can ask to reflect the deletion."""
        return Watermark(self.deleted_at, self.product_id, self.generation)


class StoredBatch(msgspec.Struct, frozen=True, tag="stored-batch"):
    """All of a batch of embeddings was stored."""

    rows: int
    watermark: Watermark


class DeletedReport(msgspec.Struct, frozen=True, tag="deleted-report"):
    """A report was deleted."""


class CurrentBuild(msgspec.Struct, frozen=True):
    """The build that a model version is served from."""

    build_id: str
    built_at: str
    rows: int
    quarantined: int
    family: Family
    recall: float
    watermark: str


class LoadedBuild(msgspec.Struct, frozen=True):
    """The index that the answering process has in memory."""

    build_id: str
    rows: int
    resident_bytes: int
    loaded_at: str


class ModelSummary(msgspec.Struct, frozen=True, tag="model"):
    """A model version as one process sees it."""

    model: Model
    current_build: CurrentBuild | None
    loaded: LoadedBuild | None


class Refusal(msgspec.Struct, frozen=True, tag="refusal"):
    """The write was refused, for a reason that lies in the request."""

    error: str
    """The name of the class in `core.errors`."""
    detail: str
    errors: tuple[FieldError, ...] = ()


Result = (
    User
    | Report
    | DeletedReport
    | StoredEmbedding
    | DeletedEmbedding
    | StoredBatch
    | Build
    | ModelSummary
    | Refusal
)
