"""What a version says of itself. The manifest is the last file of a version to be written."""

import hashlib
from typing import Any, Final, Literal

import msgspec

from core.errors import Corrupt
from core.models import BuildParameters, Metric
from core.vectors.changes import Changes
from core.vectors.parameters import IndexInfo, Recall

FORMAT: Final = 1
"""Raised when older readers could no longer serve a version."""
FORMAT_NEAR_COPIES: Final = 2
"""Of a version with near copies, which readers of format 1 would give the scores of others."""
MANIFEST: Final = "manifest.json"
_CHECKSUM: Final = b',\n "checksum": "'
"""Where the last line of a manifest begins: the SHA-256 of all that stands before it."""


class FileInfo(msgspec.Struct, frozen=True):
    """One file of a version."""

    sha256: str
    """In hex."""
    bytes: int
    s3_checksum: str | None = None
    """As S3 has it, in base64; None in what releases up to 23e14f8 have published."""


class Counts(msgspec.Struct, frozen=True):
    """The rows that a build met."""

    rows: int
    """In the index."""
    tombstones: int = 0
    quarantined: dict[str, int] = {}
    """Reason → rows that were left out for it."""


class MatrixInfo(msgspec.Struct, frozen=True):
    """The similarity matrix."""

    k: int
    exact: bool
    recall: float
    """1 where it is exact, else measured at k on a sample."""


class Software(msgspec.Struct, frozen=True):
    """What made the files: the same of these and the same rows make the same bytes."""

    k9: str
    faiss: str
    numpy: str
    simd: str
    threads: int


class RecentRows(msgspec.Struct, frozen=True):
    """The rows of a pull that had changed shortly before it: enough to know them again."""

    since: str
    """From this moment on."""
    rows: int
    digest: str
    """Of their ids and times, in hex; the same in any order."""


class Manifest(msgspec.Struct, frozen=True):
    """All of a version in one JSON object. Readers pass over fields they do not know."""

    model_version: str
    build_id: str
    epoch: int
    built_at: str
    watermark: str
    """Rows changed up to here are surely in it."""
    dimension: int
    metric: Metric
    counts: Counts
    parameters: BuildParameters
    index: IndexInfo
    recall: Recall
    matrix: MatrixInfo
    files: dict[str, FileInfo]
    """Name → checksum and size, of every file but this one."""
    resident_bytes: int
    """Of the files that serving maps, when all of them are in memory."""
    software: Software
    stages: dict[str, float] = {}
    """Stage → seconds."""
    cost: dict[str, Any] = {}
    """What the pull read and the publishing wrote, filled in by the worker."""
    pulled_at: str = ""
    """When the pull began: rows changed later may be missing, whatever the clocks."""
    recent: RecentRows | None = None
    """Those that changed between the watermark and the pull; None in earlier releases' versions."""
    changes: Changes | None = None
    """Against the version that was current then; None where there was none to compare with."""
    generation: int = 0
    """That of the model version; releases up to 23e14f8 wrote none."""
    format: Literal[1, 2] = FORMAT

    @property
    def data(self) -> tuple[int, int]:
        """As `Model.data`: the version answers for no other."""
        return self.generation, self.epoch

    def encode(self) -> bytes:
        """As JSON, on lines, for people too. The last line is a checksum of the others."""
        text = msgspec.json.format(msgspec.json.encode(self), indent=1).removesuffix(b"\n}")
        return text + _CHECKSUM + _end(text)


def decode_manifest(data: bytes) -> Manifest:
    """The inverse of `Manifest.encode`. One that some other program wrote may have no checksum.

    Raises:
        Corrupt: when it is no manifest, is not what was written, or is of a format not known.
    """
    text, mark, end = data.rpartition(_CHECKSUM)
    if mark and end != _end(text):
        raise Corrupt(f"{MANIFEST} does not have the checksum that stands in it", MANIFEST)
    try:
        return msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise Corrupt(f"{MANIFEST} does not hold: {error}", MANIFEST) from None


def contents(data: bytes) -> dict[str, Any]:
    """All that a manifest says, also what this release does not know, without its checksum.

    Raises:
        Corrupt: when it is no JSON object.
    """
    try:
        found = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise Corrupt(f"{MANIFEST} does not hold: {error}", MANIFEST) from None
    found.pop("checksum", None)
    return found


def _end(text: bytes) -> bytes:
    return f'{hashlib.sha256(text).hexdigest()}"\n}}\n'.encode()
