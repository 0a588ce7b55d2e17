"""The table of errors is complete, and shows no more than it should."""

from collections.abc import Iterator

import msgspec
import pytest
from litestar.exceptions import HTTPException, MethodNotAllowedException, ValidationException

from api.http.problems import PROBLEM_JSON, TABLE, Problem, kind_of, problem_reply, unexpected
from core.errors import (
    Corrupt,
    FieldError,
    Invalid,
    K9Error,
    NoIndex,
    NotYetVisible,
    Overloaded,
    PartlyStored,
    Unauthenticated,
)


def _all(root: type[K9Error]) -> Iterator[type[K9Error]]:
    yield root
    for child in root.__subclasses__():
        yield from _all(child)


def _body(error: BaseException) -> Problem:
    return msgspec.json.decode(problem_reply(error).body, type=Problem)


def test_every_error_of_the_tree_has_its_own_entry() -> None:
    """A new class without one would silently be its parent's problem."""
    ours = {error for error in _all(K9Error) if error.__module__ == "core.errors"}
    assert set(TABLE) == ours


def test_titles_and_types_go_together() -> None:
    """One type has one title and one status: RFC 9457 says a title does not vary."""
    kinds = {kind.slug: kind for kind in TABLE.values()}
    assert all(kinds[kind.slug] == kind for kind in TABLE.values())


@pytest.mark.parametrize(
    ("error", "status", "slug"),
    [
        (NoIndex("x"), 409, "no-index"),
        (NotYetVisible("x"), 409, "not-yet-visible"),
        (Overloaded("x"), 503, "overloaded"),
        (Corrupt("x"), 500, "internal"),
        (ZeroDivisionError("x"), 500, "internal"),
        (MethodNotAllowedException(headers={"allow": "GET"}), 405, "method-not-allowed"),
        (ValidationException("x"), 400, "unreadable"),
        (HTTPException("x", status_code=502), 502, "internal"),
        (HTTPException("x", status_code=418), 418, "about:blank"),
        (HTTPException("x", status_code=499), 499, "about:blank"),
    ],
)
def test_each_kind_of_error_has_its_status_and_type(
    error: Exception, status: int, slug: str
) -> None:
    """Ours, Litestar's, and anybody's."""
    reply = problem_reply(error)
    body = _body(error)
    assert (reply.status, body.status, body.type) == (status, status, slug)
    assert reply.content_type == PROBLEM_JSON
    assert unexpected(error) == (slug == "internal")


def test_what_went_wrong_inside_is_not_shown() -> None:
    """Neither an unexpected error's text nor that of one which is ours to fix."""
    for error in (RuntimeError("secret"), Corrupt("secret"), HTTPException("secret")):
        assert b"secret" not in problem_reply(error).body


def test_a_body_that_does_not_hold_lists_its_fields() -> None:
    """One entry a field."""
    errors = (FieldError("k", "must be a number"), FieldError("vector", "is empty"))
    assert _body(Invalid("two things", errors)).errors == list(errors)


def test_a_batch_stored_in_part_says_what_is_left() -> None:
    """With the ids to send again, and when."""
    reply = problem_reply(PartlyStored(3, ("a", "b")))
    body = _body(PartlyStored(3, ("a", "b")))
    assert (reply.status, body.stored, body.unprocessed) == (503, 3, ["a", "b"])
    assert dict(reply.headers)[b"retry-after"] == b"1"


def test_a_401_says_how_to_come_in() -> None:
    """With the scheme, and no reason."""
    assert problem_reply(Unauthenticated("x")).headers == ((b"www-authenticate", b"Bearer"),)


def test_an_error_of_tomorrow_is_its_parents_problem() -> None:
    """A subclass that some other package makes is not an internal error for it."""

    class Later(NoIndex):
        pass

    assert kind_of(Later("x")).slug == "no-index"
