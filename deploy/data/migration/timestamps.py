"""Converts timestamps of older data to K9's own format."""

import re
from datetime import UTC, datetime
from typing import Final

from core.models import timestamp

_MILLISECONDS_FROM: Final = 100_000_000_000
"""Numbers from here on are milliseconds: as seconds they would be after the year 5138."""
_YEAR_MIN: Final = 1000
"""Earlier years have fewer than four digits, so their text would not sort."""
_WITH_TIME: Final = re.compile(r"\d{4}-\d{2}-\d{2}([T ].*)?", re.ASCII | re.IGNORECASE)
_MIDNIGHT: Final = re.compile(
    r"(\d{4}-\d{2}-\d{2})[T ]00:00(:00(\.0+)?)?(Z|[+-]00:?00)?", re.ASCII | re.IGNORECASE
)


def read_timestamp(value: str | float) -> str:
    """A time in K9's format: RFC 3339, UTC, six decimals.

    Args:
        value: ISO 8601, by default in UTC, a date alone at midnight; or Unix time in seconds or
            milliseconds.

    Raises:
        ValueError: it is none of these.
    """
    try:
        if isinstance(value, str):
            # fromisoformat also takes dates without hyphens and by week, which may be plain
            # numbers, but not a lower-case "z", which RFC 3339 allows.
            text = value.strip() if _WITH_TIME.fullmatch(value.strip()) else ""
            moment = datetime.fromisoformat(text.upper())
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        else:
            seconds = value / 1000 if abs(value) >= _MILLISECONDS_FROM else value
            moment = datetime.fromtimestamp(seconds, UTC)
        moment = moment.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise ValueError("is not a time") from None
    if moment.year < _YEAR_MIN:
        raise ValueError("is not a time")
    return timestamp(moment)


def full_date(text: str) -> str:
    """The date of a time at midnight, which loses nothing; any other text unchanged."""
    found = _MIDNIGHT.fullmatch(text)
    return found[1] if found else text
