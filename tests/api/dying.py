"""A process that dies at a chosen moment of a write."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import Unavailable
from tests.api.conftest import Service


class Dying:
    """Stands before DynamoDB, and has the process die at a chosen transaction."""

    def __init__(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        self._call = service.resources.dynamo.call
        self._patch = monkeypatch
        self._dynamo = service.resources.dynamo
        self._dead = False
        self._left = 0
        self._done = False
        self._stays_dead = True
        self._lease_s = service.settings.records.idempotency_lease_s

    def at(self, transaction: int, *, done: bool, for_good: bool = True) -> None:
        """Dies at this transaction (from 1), before it happens or with it `done`.

        For good, so that nothing is tidied up; or it is only that one's answer that is missing.
        """
        self._left, self._done, self._stays_dead = transaction, done, for_good
        self._patch.setattr(self._dynamo, "call", self._through)

    def risen(self) -> None:
        """From here on the process is a new one."""
        self._dead = False
        self._patch.setattr(self._dynamo, "call", self._call)

    def lease_ends(self) -> None:
        """From here on it is so much later for whoever looks at a key that its lease has ended."""
        later_s = self._lease_s + 1
        clock = SimpleNamespace(time=lambda: time.time() + later_s)
        self._patch.setattr("core.repositories.idempotency.time", clock)

    async def _through(self, operation: str, **parameters: Any) -> dict[str, Any]:
        if self._dead:
            raise Unavailable("the process is dead")
        if operation == "transact_write_items":
            self._left -= 1
            if self._left == 0:
                self._dead = self._stays_dead
                if self._done:
                    await self._call(operation, **parameters)
                raise Unavailable("the process died here")
        return await self._call(operation, **parameters)
