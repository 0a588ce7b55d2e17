"""Typed parameters of paths, queries and headers, for handlers and for the OpenAPI document."""

import re
from typing import Annotated, Any, Final, cast, get_args

from litestar.datastructures import ResponseHeader
from litestar.params import HeaderParameter, PathParameter, QueryParameter
from msgspec import json

from api.wire.fields import PRODUCT_ID
from api.wire.filters import FILTER
from api.wire.search import WATERMARK as WATERMARK_TEXT
from core.attributes.values import NAME as ATTRIBUTE_NAME
from core.identifiers import MODEL_VERSION, REPORT_ID
from core.limits import ATTRIBUTES_MAX, BUILD_ID_CHARACTERS_MAX, K_MAX, PRODUCT_ID_BYTES_MAX
from core.models import Metric

ModelVersion = Annotated[
    str,
    PathParameter(
        pattern=rf"^{MODEL_VERSION}\Z",
        schema_extra={"pattern": f"^{MODEL_VERSION}$", "example": "minilm-l6-v2"},
    ),
]
ProductIdPath = Annotated[
    str,
    PathParameter(
        description=f"1 to {PRODUCT_ID_BYTES_MAX} bytes of UTF-8, not blank, not `.` or `..`, "
        "without control characters; percent-encoded, a slash too (`%2F`).",
        schema_extra={"type": "string", **PRODUCT_ID},
    ),
]
BuildIdPath = Annotated[
    str,
    PathParameter(
        schema_extra={"type": "string", "minLength": 1, "maxLength": BUILD_ID_CHARACTERS_MAX}
    ),
]
ImportIdPath = BuildIdPath
ReportIdPath = Annotated[
    str, PathParameter(schema_extra={"type": "string", "pattern": f"^{REPORT_ID}$"})
]
UserIdPath = Annotated[
    str,
    PathParameter(
        description="The caller's own, or `me`.",
        schema_extra={"type": "string", "minLength": 1, "example": "me"},
    ),
]
KQuery = Annotated[int, QueryParameter(ge=1, le=K_MAX, description="How many neighbours.")]
FilterQuery = Annotated[
    str | None,
    QueryParameter(
        name="filter",
        description=f"A filter, as in a search, as JSON. {FILTER['description']}",
        schema_extra={
            "type": "string",
            "contentMediaType": "application/json",
            "example": json.encode(FILTER["example"]).decode(),
        },
    ),
]
FieldsQuery = Annotated[
    str | None,
    QueryParameter(
        name="fields",
        description="Attributes to give with each product, as `attributes`: up to "
        f"{ATTRIBUTES_MAX} names, with commas between.",
        schema_extra={
            "type": "string",
            "pattern": f"^{ATTRIBUTE_NAME}(,{ATTRIBUTE_NAME}){{0,{ATTRIBUTES_MAX - 1}}}$",
            "example": "title,price",
        },
    ),
]
_METRICS: Final = f"^({'|'.join(get_args(Metric))})"
MetricQuery = Annotated[
    # No `Metric | None`, as which `?metric=null` would be read as an absent one.
    str | None,
    # No default: a generated client sends one with every write, a conflict where it differs.
    QueryParameter(
        pattern=rf"{_METRICS}\Z",
        description="Fixed by the first write of a model version; another one later is a conflict. "
        "Absent it is the model version's own, and `cosine` for a new one.",
        schema_extra={"enum": list(get_args(Metric)), "pattern": f"{_METRICS}$"},
    ),
]


def metric_of(text: str | None) -> Metric | None:
    """A `MetricQuery`, whose pattern has been checked, as its type."""
    return cast("Metric | None", text)


IfMatch = Annotated[
    str | None,
    HeaderParameter(
        name="If-Match", description="`ETag`s of which the report must have one, or `*`; else 412."
    ),
]


def _header(name: str, description: str) -> ResponseHeader:
    return ResponseHeader(name, documentation_only=True, required=True, description=description)


LOCATION: Final = _header("Location", "Where to find it.")
ETAG: Final = _header("ETag", "The version, for `If-Match`.")
WATERMARK: Final = _header(
    "X-Watermark", "Opaque; send it as `min_watermark` of a search that must reflect this write."
)
HEADER_SCHEMAS: Final[dict[str, dict[str, Any]]] = {
    "Location": {"type": "string", "pattern": "^/"},
    "ETag": {"type": "string", "pattern": '^"[0-9]+"$'},
    "X-Watermark": {"type": "string", **WATERMARK_TEXT},
}

_TAG: Final = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
_VERSION: Final = re.compile(r'"([1-9][0-9]{0,37}0{0,88})"')
"""Every whole number that DynamoDB holds: 38 digits, and zeros up to 1e126."""


def matching_versions(if_match: str | None) -> frozenset[int] | None:
    """The versions that an `If-Match` names; None where any will do.

    Tags of other makes, weak ones among them, match no version (RFC 9110, 13.1.1).
    """
    if if_match is None or if_match.strip() == "*":
        return None
    versions = (_VERSION.fullmatch(tag) for tag in _TAG.findall(if_match))
    return frozenset(int(version[1]) for version in versions if version)
