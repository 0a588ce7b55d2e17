"""What `k9 doctor` found: one check per line, and the latency of DynamoDB."""

from collections.abc import Sequence
from typing import Literal

import msgspec

Status = Literal["ok", "warning", "failed", "skipped"]
Process = Literal["api", "worker"]
"""Whose rights are examined: each has a role of its own."""


class Check(msgspec.Struct, frozen=True):
    """One thing that was examined."""

    name: str
    """Its subject: `table k9-users-dev`, `clock`."""
    status: Status
    """`warning`: K9 works, and is less safe or slower than it should be. `skipped`: not examined,
    since something else failed or the caller lacks a right that K9's processes do not need."""
    detail: str
    advice: str = ""
    """What to do, where it is not `ok`."""


class Latency(msgspec.Struct, frozen=True):
    """Times of one operation, as a process of K9 sees them, retries included."""

    operation: str
    """`get`, `put` or `query`."""
    calls: int
    p50_ms: float
    p99_ms: float
    max_ms: float


class Report(msgspec.Struct, frozen=True):
    """Everything that was found."""

    environment: str
    checks: list[Check]
    latency: list[Latency] = []

    @property
    def failed(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.status == "failed"]


def ok(name: str, detail: str) -> Check:
    """A check that found nothing wrong."""
    return Check(name, "ok", detail)


def failed(name: str, detail: str, advice: str) -> Check:
    """A check that found something that K9 cannot work with."""
    return Check(name, "failed", detail, advice)


def warning(name: str, detail: str, advice: str) -> Check:
    """A check that found something less safe or slower than it should be."""
    return Check(name, "warning", detail, advice)


def skipped(name: str, detail: str, advice: str = "") -> Check:
    """A check that could not be made."""
    return Check(name, "skipped", detail, advice)


def not_allowed(name: str, action: str) -> Check:
    """A check for which an action is denied that K9's own processes do not call."""
    advice = "K9's processes do not need it; examine with an operator's credentials"
    return skipped(name, f"{action} is denied", advice)


def percentile(sorted_values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of at least one value, in ascending order."""
    rank = max(1, -(-len(sorted_values) * percent // 100))
    return sorted_values[int(rank) - 1]
