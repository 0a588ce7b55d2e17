"""What a benchmark measured: printed in one form, and recorded for `tests.benchmarks.table`.

Where the environment variable `K9_FIGURES_FILE` names a file, each figure is appended to it as a
line of JSON, and a last line says that the benchmark came to its end.
"""

import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

FILE: Final = "K9_FIGURES_FILE"
_END: Final = b"end\n"


class Target(msgspec.Struct, frozen=True):
    """What the median has to reach."""

    value: float
    bound: Literal["at least", "at most"]

    def __str__(self) -> str:
        return f"{self.bound} {number(self.value)}"


def at_least(value: float) -> Target:
    """The median is to be this or more."""
    return Target(value, "at least")


def at_most(value: float) -> Target:
    """The median is to be this or less."""
    return Target(value, "at most")


class Figure(msgspec.Struct, frozen=True):
    """One figure, with its value in each turn."""

    name: str
    values: list[float]
    unit: str = ""
    """Empty for a ratio."""
    target: Target | None = None

    @property
    def median(self) -> float:
        """Of all turns."""
        return statistics.median(self.values)

    @property
    def reached(self) -> bool | None:
        """Whether the median reaches the target; None without one."""
        if self.target is None:
            return None
        value = self.target.value
        return self.median >= value if self.target.bound == "at least" else self.median <= value

    @property
    def range(self) -> str:
        """The lowest and the highest."""
        return f"{number(min(self.values))} to {number(max(self.values))}"

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        line = f"{self.name:<52} {number(self.median):>9}{unit:<5} ({self.range})"
        if len(self.values) > 1:
            line += f" of {len(self.values)}"
        if self.target is not None:
            line += f"  to reach: {self.target}"
            line += "" if self.reached else ", NOT REACHED"
        return line


class Report:
    """The figures of one benchmark, in the order in which they are added."""

    def __init__(self) -> None:
        named = os.environ.get(FILE)
        self._file = None if named is None else Path(named)
        self.figures: list[Figure] = []

    def add(
        self, name: str, values: Iterable[float], unit: str = "", target: Target | None = None
    ) -> None:
        """Prints a figure, and records it.

        Raises:
            ValueError: there are no values.
        """
        figure = Figure(name, [float(value) for value in values], unit, target)
        if not figure.values:
            raise ValueError(f"no values of {name}")
        print(figure, flush=True)
        self.figures.append(figure)
        self._append(msgspec.json.encode(figure) + b"\n")

    def end(self) -> int:
        """The exit status: 1 where a target was not reached."""
        self._append(_END)
        return 1 if any(figure.reached is False for figure in self.figures) else 0

    def _append(self, line: bytes) -> None:
        if self._file is not None:
            with self._file.open("ab") as file:
                file.write(line)


def read_figures(path: Path) -> tuple[list[Figure], bool]:
    """What a benchmark recorded, and whether it came to its end; nothing without a file."""
    if not path.exists():
        return [], False
    lines = path.read_bytes().splitlines(keepends=True)
    ended = bool(lines) and lines[-1] == _END
    whole = [line for line in lines if line != _END and line.endswith(b"\n")]
    return [msgspec.json.decode(line, type=Figure) for line in whole], ended


def ratios(values: Sequence[float], to: Sequence[float]) -> list[float]:
    """One a turn."""
    return [one / other for one, other in zip(values, to, strict=True)]


def number(value: float) -> str:
    """With three digits or more, and all of those before the point."""
    size = abs(value)
    digits = next((d for least, d in ((100, 0), (10, 1), (1, 2)) if size >= least), 3)
    return f"{value:,.{digits}f}"
