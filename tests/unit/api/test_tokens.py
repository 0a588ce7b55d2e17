"""Rights from claims that were verified, and how long they are remembered."""

from typing import Any

import pytest

from api.auth.tokens import caller_of, check_settings
from core.errors import SettingsError
from core.settings import Auth, Settings

CLAIMS = {"sub": "u1", "exp": 1_800_000_000}
NOBODY, READER, OPERATOR = (False, False), (True, False), (True, True)


@pytest.mark.parametrize(
    ("claims", "rights"),
    [
        ({}, NOBODY),
        ({"cognito:groups": ["readers"]}, READER),
        ({"cognito:groups": ["others", "operators"]}, OPERATOR),
        ({"cognito:groups": ["READERS", "Operators", "k9/read", "k9/operate"]}, NOBODY),
        ({"cognito:groups": "operators"}, NOBODY),
        ({"cognito:groups": [["operators"], 1, None]}, NOBODY),
        ({"cognito:groups": {"operators": True}}, NOBODY),
        ({"scope": "openid k9/read"}, READER),
        ({"scope": "k9/operate openid"}, OPERATOR),
        ({"scope": "K9/READ k9/readers operators readers"}, NOBODY),
        ({"scope": ["k9/operate"]}, NOBODY),
        ({"scope": "k9/read", "cognito:groups": ["readers"]}, READER),
    ],
)
def test_rights_come_from_groups_or_scopes(
    claims: dict[str, Any], rights: tuple[bool, bool]
) -> None:
    """Written as they are; an operator may read; what has another type gives none."""
    caller = caller_of(CLAIMS | claims)
    assert (caller.reader, caller.operator) == rights
    assert caller.user_id == "u1"


def test_a_caller_is_known_until_the_token_ends_and_no_longer_than_the_leeway() -> None:
    """The leeway is that of the token's verification; without one there is none."""
    assert caller_of(CLAIMS).expires_at == 1_800_000_000
    assert caller_of(CLAIMS, 5).expires_at == 1_800_000_005


@pytest.mark.parametrize(
    ("auth", "line"),
    [
        (Auth(), "K9_AUTH_ISSUER is missing: the address of the user pool"),
        (
            Auth(auth_issuer="https://pool"),
            "K9_AUTH_CLIENT_IDS is missing: the app clients whose tokens are good",
        ),
    ],
)
def test_settings_under_which_no_token_is_valid_are_named(auth: Auth, line: str) -> None:
    """The process does not start with them."""
    with pytest.raises(SettingsError) as raised:
        check_settings(Settings(auth=auth))
    assert str(raised.value) == line
