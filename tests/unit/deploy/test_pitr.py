from datetime import UTC, datetime

import pytest

from core.settings import Settings
from deploy.data.pitr import environment_name, parse_time
from deploy.errors import CommandError

_MOMENT = datetime(2025, 9, 30, 8, tzinfo=UTC)


def test_a_time_needs_an_offset() -> None:
    """What is local time here would be another there."""
    for text in ("2025-09-30T10:00:00+02:00", "2025-09-30t08:00:00z", "2025-09-30 08:00:00.0Z"):
        assert parse_time(text) == _MOMENT
    for text in ("2025-09-30T10:00:00", "2025-09-30", "yesterday", "", "2025-09-31T10:00:00Z"):
        with pytest.raises(CommandError, match="RFC 3339"):
            parse_time(text)
    with pytest.raises(CommandError, match="is in the future"):
        parse_time("2999-01-01T00:00:00Z")


def test_the_new_environment_is_named_for_the_time() -> None:
    """Or as asked; never the present one, and never a name that tables cannot have."""
    assert environment_name(Settings(), _MOMENT, None) == "dev-20250930t080000"
    assert environment_name(Settings(), _MOMENT, "looked-at") == "looked-at"
    with pytest.raises(CommandError, match="into a new one"):
        environment_name(Settings(), _MOMENT, "dev")
    with pytest.raises(CommandError, match="--into"):
        environment_name(Settings(environment="a" * 20), _MOMENT, None)
