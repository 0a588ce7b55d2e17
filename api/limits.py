"""What a process takes on: requests in flight, and bytes of bodies in memory."""

from typing import Final

from core.errors import Overloaded
from core.settings import Http

_RETRY_AFTER_S: Final = 1


class Admission:
    """Counts what is in flight, and turns away what would be too much, at once."""

    def __init__(self, http: Http) -> None:
        self._requests_max = http.concurrent_requests_max
        self._bytes_max = http.buffered_bytes_max
        self.requests = 0
        self.buffered_bytes = 0

    def enter(self) -> None:
        """Takes a request in; `leave` must follow.

        Raises:
            Overloaded: there are as many in flight as the process can finish.
        """
        if self.requests >= self._requests_max:
            raise Overloaded(
                "too many requests are in flight; try again shortly", retry_after_s=_RETRY_AFTER_S
            )
        self.requests += 1

    def leave(self) -> None:
        """A request that was taken in is done."""
        self.requests -= 1

    def reserve(self, size: int) -> None:
        """Makes room for bytes of a body; `release` must follow. One alone always fits.

        Raises:
            Overloaded: too many bytes of bodies are in memory already.
        """
        if self.buffered_bytes + size > self._bytes_max and self.buffered_bytes > 0:
            raise Overloaded(
                "too many large bodies are in flight; try again shortly",
                retry_after_s=_RETRY_AFTER_S,
            )
        self.buffered_bytes += size

    def release(self, size: int) -> None:
        """Gives room back."""
        self.buffered_bytes -= size
