"""Users and reports. Their bounds are checked in `core.usecases`, which names every bad field."""

from typing import Annotated, Any, ClassVar, Final

from msgspec import UNSET, Meta, Raw, UnsetType

from api.wire.fields import Answer, Body, ProductId, Time
from core.limits import (
    AUTHOR_CHARACTERS_MAX,
    EMAIL_CHARACTERS_MAX,
    NAME_CHARACTERS_MAX,
    REFERENCE_CHARACTERS_MAX,
    TITLE_CHARACTERS_MAX,
    URL_CHARACTERS_MAX,
)

_LINE: Final = r"^[^\u0000-\u001f]*[^\s\u0000-\u001f\u0085][^\u0000-\u001f]*$"
"""Text that is not blank, and without control characters."""
_EMAIL: Final = r"^[^@\s\u0000-\u001f\u0085]+@[^@\s\u0000-\u001f\u0085]+$"
_HTTPS: Final = r"^https://[A-Za-z0-9][^\s\u0000-\u001f/?#\[\]]*([/?#][^\s\u0000-\u001f]*)?$"


def _text(characters_max: int, pattern: str = _LINE, description: str | None = None) -> Meta:
    schema = {"minLength": 1, "maxLength": characters_max, "pattern": pattern}
    return Meta(extra_json_schema=schema, description=description)


Name = Annotated[str, _text(NAME_CHARACTERS_MAX)]
Email = Annotated[str, _text(EMAIL_CHARACTERS_MAX, _EMAIL)]
Url = Annotated[str, _text(URL_CHARACTERS_MAX, _HTTPS, "An https address.")]
Title = Annotated[str, _text(TITLE_CHARACTERS_MAX)]
Author = Annotated[str, _text(AUTHOR_CHARACTERS_MAX)]
Reference = Annotated[str, _text(REFERENCE_CHARACTERS_MAX)]
Date = Annotated[str, Meta(extra_json_schema={"format": "date"})]
Favorites = Annotated[
    list[ProductId], Meta(description="Product ids in order; those that come again are dropped.")
]
Preferences = Annotated[
    Raw,
    Meta(
        description="Any JSON object; it comes back exactly as it was sent.",
        extra_json_schema={"type": ["object", "null"]},
    ),
]
NewPreferences = Annotated[Raw, Meta(extra_json_schema={"type": "object"})]


class UserBody(Body, frozen=True):
    """A merge patch of a profile: null removes."""

    SCHEMA: ClassVar[dict[str, Any]] = {"example": {"email": "ada@example.com"}}

    name: Name | UnsetType | None = UNSET
    email: Email | UnsetType | None = UNSET
    avatar_url: Url | UnsetType | None = UNSET
    preferences: Preferences | UnsetType = UNSET


class NewUser(UserBody, frozen=True):
    """A new profile."""

    SCHEMA: ClassVar[dict[str, Any]] = {
        "example": {"name": "Ada", "preferences": {"theme": "dark"}}
    }

    preferences: NewPreferences | UnsetType = UNSET


class UserItem(Answer):
    """A profile."""

    user_id: str
    name: str | None
    email: str | None
    avatar_url: str | None
    preferences: Raw
    created_at: Time
    updated_at: Time
    deleting_at: Time | None
    """Since when it is being deleted."""


class ReportBody(Body, frozen=True):
    """A merge patch of a report: null removes."""

    SCHEMA: ClassVar[dict[str, Any]] = {"example": {"title": "Renamed"}}

    title: Title | UnsetType = UNSET
    author: Author | UnsetType | None = UNSET
    date: Date | UnsetType | None = UNSET
    reference: Reference | UnsetType | None = UNSET
    favorites: Favorites | UnsetType | None = UNSET


class NewReport(ReportBody, frozen=True):
    """A new report."""

    SCHEMA: ClassVar[dict[str, Any]] = {
        "example": {"title": "Test Report", "favorites": ["pandas", "numpy"]},
        "required": ["title"],
    }


class ReportItem(Answer):
    """A report."""

    id: str
    user_id: str
    title: str
    author: str | None
    date: str | None
    reference: str | None
    favorites: list[str]
    created_at: Time
    updated_at: Time


class ReportPage(Answer):
    """A page of reports, newest first."""

    items: list[ReportItem]
    next_cursor: str | None
