"""A process that dies at a chosen moment of a write."""

import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import pytest

from core.errors import Unavailable
from tests.api.conftest import Service

_OURS: ContextVar[bool] = ContextVar("ours", default=False)
"""Set where a call is made for the test, and not by what the application does by itself."""


@dataclass(frozen=True)
class _Clock:
    """The module `time`, some seconds later."""

    later_s: float

    def time(self) -> float:
        """Unix time in seconds."""
        return time.time() + self.later_s


class Dying:
    """Stands before DynamoDB, and has the process die at a chosen call."""

    def __init__(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        self._call = service.resources.dynamo.call
        self._patch = monkeypatch
        self._dynamo = service.resources.dynamo
        self._dead = False
        self._left = 0
        self._done = False
        self._stays_dead = True
        self._operation: str | None = None
        self._later_s = 0.0
        self._lease_s = service.settings.records.idempotency_lease_s

    def at(self, transaction: int, *, done: bool, for_good: bool = True) -> None:
        """Dies at this transaction (from 1), before it happens or with it `done`.

        For good, so that nothing is tidied up; or it is only that one's answer that is missing.
        """
        self._begin("transact_write_items", transaction, done=done, for_good=for_good)

    def at_call(self, call: int, *, done: bool) -> None:
        """Dies for good at this call (from 1) of the test's own requests, whatever it is."""
        _OURS.set(True)
        self._begin(None, call, done=done, for_good=True)

    @property
    def died(self) -> bool:
        """Whether the chosen call came."""
        return self._left <= 0

    def risen(self) -> None:
        """From here on the process is a new one."""
        self._dead = False
        self._patch.setattr(self._dynamo, "call", self._call)

    def lease_ends(self) -> None:
        """From here on it is so much later for whoever looks at a key that its lease has ended."""
        self._later_s += self._lease_s + 1
        self._patch.setattr("core.repositories.idempotency.time", _Clock(self._later_s))

    def _begin(self, operation: str | None, number: int, *, done: bool, for_good: bool) -> None:
        self._operation, self._left = operation, number
        self._done, self._stays_dead = done, for_good
        self._patch.setattr(self._dynamo, "call", self._through)

    async def _through(self, operation: str, **parameters: Any) -> dict[str, Any]:
        if self._operation is None and not _OURS.get():
            return await self._call(operation, **parameters)
        if self._dead:
            raise Unavailable("the process is dead")
        if self._operation in {None, operation}:
            self._left -= 1
            if self._left == 0:
                self._dead = self._stays_dead
                if self._done:
                    await self._call(operation, **parameters)
                raise Unavailable("the process died here")
        return await self._call(operation, **parameters)
