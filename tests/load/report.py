"""What one load run is asked for, and what came of it."""

import sys
from collections import Counter, defaultdict

import msgspec
import numpy as np

_COLUMNS = (
    f"{'':26}{'requests':>9}{'a second':>10}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'errors':>8}"
)


class Plan(msgspec.Struct, frozen=True):
    """What the command hands to locust, made before the first request."""

    tokens: list[str]
    """Of callers."""
    operator: str
    """Another token."""
    duration_s: int
    think_s: float
    """How long each user waits between two requests."""
    build_every_s: float
    """From one request for a build to the next."""


class Report:
    """How long each request took, by route, and which went wrong."""

    def __init__(self) -> None:
        self._times_ms: defaultdict[str, list[float]] = defaultdict(list)
        self._errors: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.builds = 0
        """Published."""

    def add(self, name: str, time_ms: float, error: str | None) -> None:
        """Notes one request."""
        self._times_ms[name].append(time_ms)
        if error is not None:
            self._errors[name][error] += 1

    def show(self, duration_s: float) -> int:
        """Prints the table; 0 where there were requests and no errors, else 1."""
        out = sys.stdout
        out.write(f"{_COLUMNS}\n")
        every: list[float] = []
        for name, times in sorted(self._times_ms.items()):
            every += times
            out.write(_line(name, times, duration_s, self._errors[name].total()))
        errors = sum(counts.total() for counts in self._errors.values())
        out.write(_line("all", every, duration_s, errors))
        out.write(f"builds published meanwhile: {self.builds}\n")
        for name, counts in sorted(self._errors.items()):
            for error, count in counts.most_common(5):
                out.write(f"{count} x {name}: {error}\n")
        out.flush()
        return 1 if errors or not every else 0


def _line(name: str, times_ms: list[float], duration_s: float, errors: int) -> str:
    p50, p95, p99 = np.percentile(times_ms or [0.0], [50, 95, 99])
    rate = len(times_ms) / duration_s
    return (
        f"{name:26}{len(times_ms):>9,}{rate:>10.1f}{p50:>9.1f}{p95:>9.1f}{p99:>9.1f}{errors:>8}\n"
    )
