"""A caller's own profile: create it, change it, and request its deletion."""

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

import msgspec

from core.errors import FieldError, Invalid, Stale, Unavailable
from core.limits import EMAIL_CHARACTERS_MAX, NAME_CHARACTERS_MAX, URL_CHARACTERS_MAX
from core.models import User, next_version, now, timestamp
from core.repositories.idempotency import Claim, completion
from core.repositories.transactions import CONFLICTS
from core.repositories.users import UserRepository
from core.settings import Records
from core.usecases import documents

_MERGED_IN_THREAD_BYTES: Final = 32 * 1024
_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+")


class UserService:
    """The writes to a profile that its owner may make."""

    def __init__(self, users: UserRepository, records: Records) -> None:
        self._users = users
        self._records = records
        self._merging = asyncio.Lock()
        """Held by one merge in a thread: several would share the processor with the event loop."""

    async def create(
        self,
        user_id: str,
        fields: Mapping[str, str | None],
        preferences: bytes | None,
        claim: Claim | None = None,
    ) -> User:
        """Creates the caller's profile; completes the claim with it.

        The fields are `name`, `email`, `avatar_url`; one that is missing or None is not set.
        `preferences` are valid JSON; None for `{}`.

        Raises:
            Invalid: with each field that is not valid.
            AlreadyExists: the caller has a profile.
            BeingDeleted: it is being deleted.
        """
        created_at = timestamp(now())
        text = b"{}" if preferences is None else preferences
        self._check(fields, preferences_problem(text, self._records))
        bare = User(user_id, created_at, created_at, preferences=text.decode())
        user = msgspec.structs.replace(bare, **fields)
        await self._users.create_user(user, completion(claim, user))
        return user

    async def change(
        self,
        user_id: str,
        fields: Mapping[str, str | None],
        preferences: bytes | None,
        claim: Claim | None = None,
    ) -> User:
        """Applies a merge patch: fields that are None are removed, preferences are merged.

        Raises:
            Invalid: with each field that is not valid.
            Unreadable: the patch of the preferences is not UTF-8.
            NotFound: there is no profile.
            BeingDeleted: it is being deleted.
            Unavailable: it kept changing at the same time.
        """
        self.validate_patch(fields, preferences)
        async for _ in CONFLICTS.attempts():
            before = await self._users.get_user(user_id)
            text = before.preferences.encode()
            if preferences is not None:
                text = await self._patched(text, preferences)
            self._check({}, preferences_problem(text, self._records))
            after = msgspec.structs.replace(
                before,
                **fields,
                preferences=text.decode(),
                updated_at=timestamp(now()),
                version=next_version(before.version),
            )
            try:
                await self._users.update_user(after, before.version, completion(claim, after))
            except Stale:
                continue
            else:
                return after
        raise Unavailable("the profile kept changing at the same time; try again")

    async def request_deletion(self, user_id: str, claim: Claim | None = None) -> User:
        """Marks the caller's profile for deletion; a worker removes it and its reports.

        Raises:
            NotFound: there is no profile.
            BeingDeleted: its deletion was requested before.
        """
        user = await self._users.get_user(user_id)
        deleting_at = timestamp(now())
        marked = msgspec.structs.replace(user, deleting_at=deleting_at)
        await self._users.mark_user(user_id, deleting_at, completion(claim, marked, lasting=True))
        return marked

    def validate_patch(self, fields: Mapping[str, str | None], preferences: bytes | None) -> None:
        """Validates as much of a change as is possible without the profile.

        Raises:
            Invalid: with each field that is not valid.
            Unreadable: the patch of the preferences is not UTF-8.
        """
        problem = None if preferences is None else patch_problem(preferences, self._records)
        self._check(fields, problem)

    async def _patched(self, preferences: bytes, patch: bytes) -> bytes:
        """Large ones are merged in a thread: those nested 100 levels deep take up to 50 ms."""
        if len(preferences) + len(patch) < _MERGED_IN_THREAD_BYTES:
            merged = documents.merge_patch(preferences, patch)
        else:
            async with self._merging:
                merged = await asyncio.to_thread(documents.merge_patch, preferences, patch)
        return b"{}" if documents.is_null(merged) else merged

    def _check(self, fields: Mapping[str, str | None], preferences: str | None) -> None:
        errors = profile_problems(fields)
        if preferences:
            errors.append(FieldError("preferences", preferences))
        if errors:
            raise Invalid.of(*errors)


def profile_problems(fields: Mapping[str, str | None]) -> list[FieldError]:
    """The problems of `name`, `email` and `avatar_url`; None means not set."""
    return [
        FieldError(name, problem)
        for name, value in fields.items()
        if value is not None and (problem := _PROBLEMS[name](value))
    ]


def preferences_problem(text: bytes, records: Records) -> str | None:
    """Why the preferences are not valid; None if they are.

    Raises:
        Unreadable: they contain text that is not UTF-8.
    """
    return _document_problem(text, records, records.preferences_bytes_max)


def patch_problem(text: bytes, records: Records) -> str | None:
    """Why a merge patch of preferences is not valid; None if it may be.

    A patch that removes every member of large preferences is longer than they are, but less than
    twice as long. The depth is checked before merging, which recurses once per level.

    Raises:
        Unreadable: it contains text that is not UTF-8.
    """
    if documents.is_null(text):
        return None
    return _document_problem(text, records, 2 * records.preferences_bytes_max)


def _document_problem(text: bytes, records: Records, bytes_max: int) -> str | None:
    documents.check_text(text)
    if not documents.is_object(text):
        return "must be a JSON object"
    if len(text) > bytes_max:
        return f"has {len(text)} bytes, the most is {bytes_max}"
    depth = documents.levels(text)
    if depth > records.preferences_levels_max:
        return f"nests {depth} levels deep, the most is {records.preferences_levels_max}"
    return None


def text_problem(text: str, characters_max: int) -> str | None:
    """Why a text field is not valid; None if it is."""
    if not text.strip():
        return "is blank"
    if len(text) > characters_max:
        return f"has {len(text)} characters, the most is {characters_max}"
    if any(ord(character) < ord(" ") for character in text):
        return "contains a control character"
    return None


def _email_problem(text: str) -> str | None:
    if not _EMAIL.fullmatch(text):
        return "is not an email address"
    return text_problem(text, EMAIL_CHARACTERS_MAX)


def _url_problem(text: str) -> str | None:
    problem = text_problem(text, URL_CHARACTERS_MAX)
    if problem:
        return problem
    try:
        parts = urlsplit(text)
        valid = parts.scheme == "https" and bool(parts.hostname) and " " not in text
    except ValueError:
        valid = False
    return None if valid else "must be an https URL"


_PROBLEMS: Final[dict[str, Callable[[str], str | None]]] = {
    "name": lambda text: text_problem(text, NAME_CHARACTERS_MAX),
    "email": _email_problem,
    "avatar_url": _url_problem,
}
