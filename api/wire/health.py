"""Liveness and readiness."""

from typing import Literal

from msgspec import UNSET, UnsetType

from api.wire.fields import Answer, Time


class Alive(Answer):
    """The process runs."""

    status: Literal["alive"] = "alive"


class DependencyItem(Answer):
    """A dependency, as its last call found it."""

    state: Literal["unknown", "ok", "failing"]
    since: Time | None
    detail: str | UnsetType | None = UNSET
    """What kind of failure it was; only with a valid token."""


class Readiness(Answer):
    """Whether searches can be answered, and the state of each dependency.

    Names of model versions and builds are given only with a valid token.
    """

    status: Literal["ready", "starting", "draining", "outdated"]
    dependencies: dict[str, DependencyItem]
    reason: str | UnsetType = UNSET
    """Why the process is outdated: what it found, what it reads, and what to do."""
    loaded: dict[str, str] | UnsetType = UNSET
    """Model version → build in memory."""
    troubles: dict[str, str] | UnsetType = UNSET
    """Model version → why its current build is not in use; an earlier one may answer."""
