"""The manifest of a version: its description, and the last of its files to be written."""

import hashlib
from typing import Any, Final, Literal

import msgspec

from core.errors import Corrupt
from core.formats import check_format
from core.models import BuildParameters, Metric
from core.vectors.changes import Changes
from core.vectors.parameters import IndexInfo, Recall, RecallBand

FORMAT: Final = 1
"""Increased when earlier releases cannot serve a version."""
FORMAT_NEAR_COPIES: Final = 2
"""Of a version with near copies, to which readers of format 1 would give wrong scores."""
MANIFEST: Final = "manifest.json"
_FORMATS: Final = FORMAT_NEAR_COPIES
"""The highest that this release reads."""
_CHECKSUM: Final = b',\n "checksum": "'
"""The start of the last line of a manifest: the SHA-256 of everything before it."""


class FileInfo(msgspec.Struct, frozen=True):
    """One file of a version."""

    sha256: str
    """In hex."""
    bytes: int
    s3_checksum: str | None = None
    """S3's, in base64; None in versions of releases up to 23e14f8."""


class Counts(msgspec.Struct, frozen=True):
    """The rows of a pull, as counted by the build."""

    rows: int
    """In the index."""
    tombstones: int = 0
    quarantined: dict[str, int] = {}
    """Reason → number of rows left out."""


class MatrixInfo(msgspec.Struct, frozen=True):
    """The similarity matrix."""

    k: int
    exact: bool
    recall: float
    """1 if it is exact, else measured at k on a sample."""


class Software(msgspec.Struct, frozen=True):
    """What made the files: the same software and the same rows give the same bytes."""

    k9: str
    faiss: str
    numpy: str
    simd: str
    threads: int


class RecentRows(msgspec.Struct, frozen=True):
    """The rows or attributes of a pull that had changed shortly before it: enough to know them."""

    since: str
    """Rows changed from this time on."""
    rows: int
    digest: str
    """Of their ids and times, in hex, whatever their order."""


class Manifest(msgspec.Struct, frozen=True):
    """The description of a version, one JSON object. Readers ignore unknown fields."""

    model_version: str
    build_id: str
    epoch: int
    built_at: str
    watermark: str
    """All rows changed up to this time are in it."""
    dimension: int
    metric: Metric
    counts: Counts
    parameters: BuildParameters
    index: IndexInfo
    recall: Recall
    matrix: MatrixInfo
    files: dict[str, FileInfo]
    """Name → checksum and size, of every file but the manifest."""
    resident_bytes: int
    """Size of the files that serving maps into memory."""
    software: Software
    stages: dict[str, float] = {}
    """Stage → seconds."""
    cost: dict[str, Any] = {}
    """DynamoDB units, S3 requests, processor time and memory of the build."""
    pulled_at: str = ""
    """When the pull began: rows changed later may be missing."""
    recent: RecentRows | None = None
    """Those that changed after the watermark; None in versions of earlier releases."""
    changes: Changes | None = None
    """From the version that was current then; None if there was none to compare with."""
    generation: int = 0
    """Of the model version; 0 in versions of releases up to 23e14f8."""
    rows_with_attributes: int | None = None
    """None in versions of releases that build no attributes, whatever the rows have."""
    recent_attributes: RecentRows | None = None
    """As `recent`, of the attributes."""
    filtered_recall: tuple[RecallBand, ...] = ()
    """By the share of rows that a filter allows, ascending: see `recall_of`. Empty in versions of
    earlier releases."""
    reused_build_id: str | None = None
    """The build whose index and matrix these are, since only attributes had changed; None where
    they were built."""
    format: Literal[1, 2] = FORMAT

    @property
    def data(self) -> tuple[int, int]:
        """As `Model.data`: the version must not answer for other data."""
        return self.generation, self.epoch

    def encode(self) -> bytes:
        """Indented JSON. The last line is a checksum of the others."""
        text = msgspec.json.format(msgspec.json.encode(self), indent=1).removesuffix(b"\n}")
        return text + _CHECKSUM + _end(text)


class _Formatted(msgspec.Struct):
    """What is read of a manifest before anything else."""

    format: int = FORMAT


_FORMATTED: Final = msgspec.json.Decoder(_Formatted)
_DECODER: Final = msgspec.json.Decoder(Manifest)
_FIELDS: Final = msgspec.json.Decoder(dict[str, Any])


def decode_manifest(data: bytes) -> Manifest:
    """The inverse of `Manifest.encode`. Other programs may write manifests without a checksum.

    Raises:
        Corrupt: it is no manifest, or was changed.
        NewerFormat: a later release wrote it.
    """
    text, mark, end = data.rpartition(_CHECKSUM)
    if mark and end != _end(text):
        raise Corrupt(f"{MANIFEST} does not match its own checksum", MANIFEST)
    try:
        found = _FORMATTED.decode(data)
        check_format(found.format, _FORMATS, MANIFEST)
        return _DECODER.decode(data)
    except msgspec.DecodeError as error:
        raise Corrupt(f"{MANIFEST} is not valid: {error}", MANIFEST) from None


def manifest_of(fields: dict[str, Any] | None) -> Manifest | None:
    """The manifest that a published build's row has; None if it has none that can be read.

    Raises:
        NewerFormat: a later release wrote it.
    """
    try:
        found = msgspec.convert(fields, _Formatted)
        check_format(found.format, _FORMATS, MANIFEST)
        return msgspec.convert(fields, Manifest)
    except msgspec.ValidationError:
        return None


def contents(data: bytes) -> dict[str, Any]:
    """All fields of a manifest, unknown ones too, without its checksum.

    Raises:
        Corrupt: it is not a JSON object.
    """
    try:
        found = _FIELDS.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Corrupt(f"{MANIFEST} is not valid: {error}", MANIFEST) from None
    found.pop("checksum", None)
    return found


def _end(text: bytes) -> bytes:
    return f'{hashlib.sha256(text).hexdigest()}"\n}}\n'.encode()
