"""The results of the writes of the API, which are stored under their idempotency keys.

They are stored as JSON, and read by other releases during an upgrade and for a day after it. So a
new field has a default, and a tag is never used for anything else.
"""

import msgspec

from core.attributes.values import Attributes
from core.errors import FieldError
from core.models import Build, Family, Import, Model, Report, User, Watermark


class StoredEmbedding(msgspec.Struct, frozen=True, tag="stored-embedding"):
    """An embedding was stored."""

    product_id: str
    dimension: int
    updated_at: str
    generation: int
    """Of the model version that it was written to."""
    created: bool
    """Whether there was no such embedding, or a deleted one."""

    @property
    def watermark(self) -> Watermark:
        """Of the write."""
        return Watermark(self.updated_at, self.product_id, self.generation)


class PatchedAttributes(msgspec.Struct, frozen=True, tag="patched-attributes"):
    """The attributes of an embedding were changed."""

    product_id: str
    attributes: Attributes
    """All of them, after the change."""
    updated_at: str
    generation: int
    """Of the model version of the embedding."""

    @property
    def watermark(self) -> Watermark:
        """A search that is given it reflects the change."""
        return Watermark(self.updated_at, self.product_id, self.generation)


class DeletedEmbedding(msgspec.Struct, frozen=True, tag="deleted-embedding"):
    """An embedding was replaced with a tombstone."""

    product_id: str
    deleted_at: str
    generation: int
    """Of the model version that it was deleted from."""

    @property
    def watermark(self) -> Watermark:
        """A search that is given it reflects the deletion."""
        return Watermark(self.deleted_at, self.product_id, self.generation)


class StoredBatch(msgspec.Struct, frozen=True, tag="stored-batch"):
    """All of a batch of embeddings was stored."""

    rows: int
    watermark: Watermark


class DeletedReport(msgspec.Struct, frozen=True, tag="deleted-report"):
    """A report was deleted."""


class CurrentBuild(msgspec.Struct, frozen=True):
    """The current build of a model version."""

    build_id: str
    built_at: str
    rows: int
    quarantined: int
    family: Family
    recall: float
    watermark: str


class LoadedBuild(msgspec.Struct, frozen=True):
    """The index that a process has in memory."""

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
    """The write was refused, as it will be whenever it is sent again."""

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
    | PatchedAttributes
    | StoredBatch
    | Build
    | Import
    | ModelSummary
    | Refusal
)
