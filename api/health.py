"""What is known of the dependencies, from what their last calls came to.

Nothing here calls anything: readiness must not add load where something is failing already.
"""

import asyncio
from typing import Final, Literal

import msgspec

from core.models import now, timestamp

State = Literal["unknown", "ok", "failing"]

_POLL_S: Final = 0.02

DEPENDENCIES = ("dynamodb", "s3", "redis", "cognito")


class Dependency(msgspec.Struct, frozen=True):
    """One dependency, as last seen."""

    state: State = "unknown"
    """`unknown` until it is first used."""
    since: str | None = None
    """RFC 3339: when this state began."""
    detail: str | None = None
    """What kind of failure it was."""


class Health:
    """What this process can do, and what it has seen."""

    def __init__(self) -> None:
        self.dependencies: dict[str, Dependency] = dict.fromkeys(DEPENDENCIES, Dependency())
        self.answering = False
        """Searches can be answered: the current builds are known, from DynamoDB or the cache."""
        self.loading = False
        """Current builds are being loaded; until one is, its model version may answer with 503."""
        self.outdated: str | None = None
        """Why this process must not work on the tables: a later release has changed them."""
        self.draining = False
        """The process is about to stop, and wants no new requests."""

    def ok(self, name: str) -> None:
        """Notes that a dependency did what it was asked."""
        if self.dependencies[name].state != "ok":
            self.dependencies[name] = Dependency("ok", timestamp(now()))

    def failing(self, name: str, detail: str) -> None:
        """Notes that it did not, and how."""
        known = self.dependencies[name]
        since = known.since if known.state == "failing" else timestamp(now())
        self.dependencies[name] = Dependency("failing", since, detail)

    def is_failing(self, name: str) -> bool:
        """Whether its last use failed."""
        return self.dependencies[name].state == "failing"

    async def until_loaded(self, at_most_s: float) -> None:
        """Returns once every current build answers, or after this time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + at_most_s
        while not self.answering or self.loading:
            if loop.time() >= deadline:
                return
            await asyncio.sleep(_POLL_S)  # readiness is a state that nothing announces

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return self.answering and not self.draining and self.outdated is None
