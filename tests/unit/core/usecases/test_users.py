"""What a profile may hold, and how a change of one goes with others that come between."""

from collections.abc import Sequence
from typing import cast

import msgspec
import pytest

from core.dynamo.client import Dynamo
from core.errors import Invalid, NotFound, Stale, Unavailable, Unreadable
from core.models import User
from core.repositories.transactions import Part
from core.repositories.users import UserRepository, unknown_user
from core.settings import Settings
from core.usecases.users import UserService, text_problem

SETTINGS = Settings()
NEW = User("u", "2025-01-01T00:00:00.000000Z", "2025-01-01T00:00:00.000000Z")


class Shelf(UserRepository):
    """Users in memory; each of `between` comes in between one reading and writing."""

    def __init__(self, *users: User) -> None:
        super().__init__(cast("Dynamo", None), SETTINGS)
        self.users = {user.user_id: user for user in users}
        self.between: list[dict[str, str]] = []

    async def get_user(self, user_id: str) -> User:
        """The user that is there."""
        if user_id not in self.users:
            raise unknown_user()
        return self.users[user_id]

    async def create_user(self, user: User, also: Sequence[Part] = ()) -> None:
        """Puts it."""
        self.users[user.user_id] = user

    async def update_user(
        self, user: User, expected_version: int, also: Sequence[Part] = ()
    ) -> None:
        """Puts it over the version that it was made from."""
        there = self.users[user.user_id]
        if self.between:
            change = self.between.pop()
            there = msgspec.structs.replace(there, version=there.version + 1, **change)
            self.users[user.user_id] = there
        if expected_version != there.version:
            raise Stale("the profile has changed meanwhile")
        self.users[user.user_id] = user


@pytest.fixture
def shelf() -> Shelf:
    """One user."""
    return Shelf(NEW)


@pytest.fixture
def profiles(shelf: Shelf) -> UserService:
    """The use case over it."""
    return UserService(shelf, SETTINGS.records)


FIELDS: list[tuple[str, str, bool]] = [
    ("name", "Ada Lovelace", True),
    ("name", "x" * 200, True),
    ("name", "🐍" * 200, True),
    ("name", "x" * 201, False),
    ("name", "", False),
    ("name", " \t ", False),
    ("name", "a\nb", False),
    ("name", "a\x00b", False),
    ("email", "a@b", True),
    ("email", "ada@example.com", True),
    ("email", "ada", False),
    ("email", "@example.com", False),
    ("email", "a@b@c", False),
    ("email", "a b@c", False),
    ("email", "a@b\n", False),
    ("email", "x" * 250 + "@example.com", False),
    ("avatar_url", "https://example.com/a.png?b=c#d", True),
    ("avatar_url", "HTTPS://example.com", True),
    ("avatar_url", "http://example.com/a.png", False),
    ("avatar_url", "https://", False),
    ("avatar_url", "https:///a", False),
    ("avatar_url", "https://[::1", False),
    ("avatar_url", "javascript:alert(1)", False),
    ("avatar_url", "//example.com", False),
    ("avatar_url", "https://exam ple.com", False),
    ("avatar_url", "https://example.com/" + "x" * 2048, False),
]


@pytest.mark.parametrize(("field", "value", "good"), FIELDS)
async def test_a_field_holds_or_is_named(
    profiles: UserService, shelf: Shelf, field: str, value: str, *, good: bool
) -> None:
    """In creating and in changing alike; what does not hold changes nothing."""
    if good:
        await profiles.create("v", {field: value}, None)
        await profiles.change("u", {field: value}, None)
        assert getattr(shelf.users["v"], field) == getattr(shelf.users["u"], field) == value
        return
    for attempt in (
        profiles.create("v", {field: value}, None),
        profiles.change("u", {field: value}, None),
    ):
        with pytest.raises(Invalid) as caught:
            await attempt
        assert [error.field for error in caught.value.errors] == [field]
    assert shelf.users == {"u": NEW}


async def test_all_that_is_wrong_is_named_at_once(profiles: UserService) -> None:
    """One error a field."""
    fields: dict[str, str | None] = {"name": "", "email": "", "avatar_url": ""}
    with pytest.raises(Invalid) as caught:
        await profiles.create("v", fields, b"[]")
    assert [error.field for error in caught.value.errors] == [
        "name",
        "email",
        "avatar_url",
        "preferences",
    ]


def _nested(levels: int) -> bytes:
    return b'{"a":' * (levels - 1) + b"{}" + b"}" * (levels - 1)


def _sized(size: int) -> bytes:
    return b'{"a":"' + b"x" * (size - 8) + b'"}'


PREFERENCES: list[tuple[str, bytes, bool]] = [
    ("100 levels", _nested(100), True),
    ("101 levels", _nested(101), False),
    ("101 levels of lists", b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", False),
    ("5,000 levels", _nested(5000), False),
    ("64 KiB", _sized(64 * 1024), True),
    ("64 KiB and a byte", _sized(64 * 1024 + 1), False),
    ("a megabyte", _sized(1024 * 1024), False),
    ("a list", b"[1]", False),
    ("a string", b'"{}"', False),
    ("a number", b"1", False),
]


@pytest.mark.parametrize(
    ("text", "good"), [pytest.param(*case[1:], id=case[0]) for case in PREFERENCES]
)
async def test_preferences_within_their_bounds(
    profiles: UserService, shelf: Shelf, text: bytes, *, good: bool
) -> None:
    """The same bounds for what is sent, and for what a patch makes."""
    if good:
        await profiles.create("v", {}, text)
        await profiles.change("u", {}, text)
        assert shelf.users["v"].preferences == shelf.users["u"].preferences == text.decode()
        return
    for attempt in (profiles.create("v", {}, text), profiles.change("u", {}, text)):
        with pytest.raises(Invalid) as caught:
            await attempt
        assert [error.field for error in caught.value.errors] == ["preferences"]
    assert shelf.users == {"u": NEW}


async def test_a_patch_that_makes_too_much_is_refused(profiles: UserService, shelf: Shelf) -> None:
    """What is there counts with what comes."""
    await profiles.change("u", {}, _sized(40 * 1024))
    before = shelf.users["u"]
    with pytest.raises(Invalid):
        await profiles.change("u", {}, b'{"b":"' + b"y" * 30 * 1024 + b'"}')
    assert shelf.users["u"] == before


async def test_all_of_large_preferences_can_be_removed_by_name(
    profiles: UserService, shelf: Shelf
) -> None:
    """Such a patch is longer than what it removes, and holds all the same."""
    names = [f'"{number:05d}"' for number in range(5800)]
    await profiles.change("u", {}, f"{{{','.join(f'{name}:1' for name in names)}}}".encode())
    await profiles.change("u", {}, f"{{{','.join(f'{name}:null' for name in names)}}}".encode())
    assert shelf.users["u"].preferences == "{}"


@pytest.mark.parametrize("text", [b'{"\xff": 1}', b'{"a": "\xff"}', b'{"a": {"\xff": 1}}'])
async def test_text_that_is_no_utf8_is_unreadable(profiles: UserService, text: bytes) -> None:
    """In a key too, which a merge has to decode."""
    for attempt in (profiles.create("v", {}, text), profiles.change("u", {}, text)):
        with pytest.raises(Unreadable):
            await attempt


async def test_what_does_not_hold_is_said_before_what_is_not_there(profiles: UserService) -> None:
    """422 comes before 404."""
    for fields, preferences in (({"name": ""}, None), ({}, b"[]"), ({}, _nested(101))):
        with pytest.raises(Invalid):
            await profiles.change("nobody", fields, preferences)
    with pytest.raises(NotFound):
        await profiles.change("nobody", {"name": "Ada"}, None)


async def test_null_removes(profiles: UserService, shelf: Shelf) -> None:
    """A field, a member of the preferences, and all of them."""
    await profiles.change("u", {"name": "Ada", "email": "a@b"}, b'{"a": 1, "b": 2}')
    await profiles.change("u", {"name": None}, b'{"a": null}')
    there = shelf.users["u"]
    assert (there.name, there.email, there.preferences) == (None, "a@b", '{"b":2}')
    await profiles.change("u", {}, b"null")
    assert shelf.users["u"].preferences == "{}"


async def test_a_change_is_made_again_on_what_came_between(
    profiles: UserService, shelf: Shelf
) -> None:
    """Others' changes are kept, and so is this one; nobody is told of a version."""
    shelf.between = [{"email": f"{number}@b"} for number in range(8)]
    changed = await profiles.change("u", {"name": "Ada"}, None)
    assert changed == shelf.users["u"]
    assert (changed.name, changed.email, changed.version) == ("Ada", "0@b", 10)


async def test_a_change_gives_up_in_the_end(profiles: UserService, shelf: Shelf) -> None:
    """As unavailable: whoever named no version is never told that one was stale."""
    shelf.between = [{"email": "a@b"}] * 1000
    with pytest.raises(Unavailable):
        await profiles.change("u", {"name": "Ada"}, None)


def test_text_of_a_line() -> None:
    """Counts characters, not bytes."""
    assert text_problem("é" * 5, 5) is None
    assert text_problem("é" * 6, 5) == "has 6 characters, the most is 5"
