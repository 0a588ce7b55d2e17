"""How many requests to S3 a piece of work made, which is what they are paid by."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class Counted:
    """Requests made for one purpose."""

    requests: int = 0


_COUNTED: ContextVar[Counted | None] = ContextVar("counted", default=None)


@contextmanager
def counted() -> Iterator[Counted]:
    """Counts the requests that this task makes, and the tasks that it starts, in the block."""
    count = Counted()
    token = _COUNTED.set(count)
    try:
        yield count
    finally:
        _COUNTED.reset(token)


def count_one() -> None:
    """Counts a request for the work that it belongs to, if that is counted."""
    count = _COUNTED.get()
    if count is not None:
        count.requests += 1
