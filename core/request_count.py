"""How many requests to S3 a piece of work makes, which is what they are billed by."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class RequestCount:
    """Requests made for one purpose."""

    requests: int = 0


_COUNT: ContextVar[RequestCount | None] = ContextVar("request_count", default=None)


@contextmanager
def count_requests() -> Iterator[RequestCount]:
    """Counts the requests of this task in the block, and of the tasks that it starts there."""
    count = RequestCount()
    token = _COUNT.set(count)
    try:
        yield count
    finally:
        _COUNT.reset(token)


def count_request() -> None:
    """Counts a request, if it is made within `count_requests`."""
    count = _COUNT.get()
    if count is not None:
        count.requests += 1
