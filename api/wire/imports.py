"""Imports of embeddings from an object in the bucket."""

from typing import Annotated, Any, ClassVar, Final, Literal

from msgspec import UNSET, Meta, UnsetType

from api.wire.fields import Answer, Body, Time
from api.wire.questions import AttributeName
from core.errors import FieldError, Invalid
from core.limits import (
    ATTRIBUTES_MAX,
    COLUMN_CHARACTERS_MAX,
    OBJECT_KEY_BYTES_MAX,
    UPLOAD_BYTES_MAX,
)
from core.models import ImportStage, ImportStatus, Metric

_Column = Annotated[str, Meta(min_length=1, max_length=COLUMN_CHARACTERS_MAX)]
_Key = Annotated[str, Meta(extra_json_schema={"minLength": 1, "maxLength": OBJECT_KEY_BYTES_MAX})]
_Length = Annotated[float, Meta(ge=1, le=UPLOAD_BYTES_MAX, multiple_of=1)]
"""A whole number, as `MatrixK`."""
_Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
_Attributes = Annotated[
    list[AttributeName],
    Meta(
        description="Columns, arrays or members to store as attributes, under their own names.",
        extra_json_schema={"maxItems": ATTRIBUTES_MAX},
    ),
]
_UPLOAD_FIELDS: Final = ("content_length", "sha256")


class ImportOptions(Body, frozen=True):
    """How rows are read and stored."""

    metric: Metric | UnsetType = UNSET
    id_column: _Column | UnsetType = UNSET
    vector_column: _Column | UnsetType = UNSET
    attributes: _Attributes | UnsetType = UNSET


class ImportOfObject(ImportOptions, frozen=True, kw_only=True):
    """An import of an object that is in the bucket."""

    key: _Key


class ImportOfUpload(ImportOptions, frozen=True, kw_only=True):
    """An import of an object that is to be uploaded."""

    upload: Annotated[bool, Meta(extra_json_schema={"const": True})]
    content_length: _Length
    sha256: _Sha256


class ImportBody(ImportOptions, frozen=True, kw_only=True):
    """What to import, as it is decoded: either of the two above."""

    SCHEMA: ClassVar[dict[str, Any]] = {
        "description": "Either `key`, an object in the bucket, or `upload`: then `content_length` "
        "and `sha256` (in hex, as `sha256sum` prints it) say what will be uploaded, and are signed "
        "into the address that the answer has.",
        "oneOf": [
            {"$ref": f"#/components/schemas/{form.__name__}"}
            for form in (ImportOfObject, ImportOfUpload)
        ],
        "example": {
            "upload": True,
            "content_length": 3_698_634,
            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "attributes": ["brand", "price"],
        },
    }

    key: _Key | UnsetType = UNSET
    upload: bool = False
    content_length: _Length | UnsetType = UNSET
    sha256: _Sha256 | UnsetType = UNSET

    def check(self) -> None:
        """Checks that it is one of the two forms.

        Raises:
            Invalid: it is neither, or both.
        """
        problems: list[FieldError] = []
        if self.upload:
            if self.key is not UNSET:
                problems.append(FieldError("key", "does not go with upload: the server names it"))
            problems += [
                FieldError(name, "is required with upload")
                for name in _UPLOAD_FIELDS
                if getattr(self, name) is UNSET
            ]
        else:
            if self.key is UNSET:
                problems.append(FieldError("key", "is required, unless upload is true"))
            problems += [
                FieldError(name, "goes with upload alone")
                for name in _UPLOAD_FIELDS
                if getattr(self, name) is not UNSET
            ]
        problems += self._columns_that_are_two()
        if problems:
            raise Invalid.of(*problems)

    def _columns_that_are_two(self) -> list[FieldError]:
        """Found now, and not once the whole object has been uploaded."""
        ids, vectors = self.id_column, self.vector_column
        problems = []
        if vectors is not UNSET and vectors == ids:
            problems.append(FieldError("vector_column", "is the column of the ids already"))
        if self.attributes is not UNSET:
            problems += [
                FieldError(f"attributes[{number}]", "has the ids or the vectors")
                for number, name in enumerate(self.attributes)
                if name in {ids, vectors}
            ]
        return problems


class ImportParametersItem(Answer):
    """What an import reads, and how it is stored."""

    key: str
    metric: Metric | None
    id_column: str | None
    vector_column: str | None
    attributes: list[str]


class ImportProgressItem(Answer):
    """How far an import is in its present stage; `total` is 0 while it is not known."""

    stage: ImportStage
    done: int
    total: int
    unit: Literal["bytes", "rows"]


class ImportItem(Answer):
    """One import."""

    import_id: str
    model_version: str
    status: ImportStatus
    requested_at: Time
    started_at: Time | None
    ended_at: Time | None
    parameters: ImportParametersItem
    progress: ImportProgressItem
    rows_stored: int
    rows_bad: int
    size_bytes: int
    """Of the object; 0 while it is not uploaded."""
    attempt: int
    """How often a worker has claimed it."""
    error: str | None


class UploadItem(Answer):
    """Where to put the object, by exactly this request."""

    method: Literal["PUT"]
    url: str
    headers: dict[str, str]
    """To be sent as they are; most clients make `Content-Length` themselves."""
    expires_in_s: int


class RequestedImport(ImportItem):
    """An import that was requested."""

    upload: UploadItem | None
    """Of one that waits for its object."""


class BadRowItem(Answer):
    """One row that was not stored."""

    number: int
    """From 1; in JSON, the line that it begins on."""
    product_id: str | None
    reason: str


class BadRowsFile(Answer):
    """A file of JSON lines with all bad rows, for whoever has the URL."""

    url: str
    expires_in_s: int


class ImportReport(ImportItem):
    """One import, with the first 1,000 of the rows that were not stored."""

    bad_rows: list[BadRowItem]
    """In events: with the last one."""
    bad_rows_file: BadRowsFile | None
    """Once the import has ended and has bad rows; not in events."""


class ImportPage(Answer):
    """A page of imports, newest first."""

    items: list[ImportItem]
    next_cursor: str | None
