"""What benchmarks came to, as `tests.benchmarks.table` keeps and writes it."""

from collections.abc import Sequence
from typing import Final

import msgspec

from tests.benchmarks.figures import Figure, number
from tests.benchmarks.machine import Machine, describe

_LOAD: Final = (
    "The load is the mean number of processes that ran or waited, over the minute before a "
    "benchmark and over its last minute."
)


class Result(msgspec.Struct, frozen=True):
    """One benchmark that ran."""

    name: str
    command: str
    began_at: str
    seconds: float
    status: int
    """With which it exited."""
    ended: bool
    """Whether it came to its end, with targets reached or not."""
    figures: list[Figure]
    load_before: float
    load_after: float
    """Processes that ran or waited for a core, on average over a minute."""
    machine: Machine
    commit: str

    @property
    def failed(self) -> bool:
        """It did not come to its end, or has nothing to show."""
        return not self.ended or not self.figures

    @property
    def good(self) -> bool:
        """It came to its end, and reached every target."""
        return not self.failed and all(figure.reached is not False for figure in self.figures)


def markdown(results: Sequence[Result]) -> str:
    """The page: targets first, then every other figure, then what they were measured on."""
    pairs = [(result, figure) for result in results for figure in result.figures]
    with_target = [(result, figure) for result, figure in pairs if figure.target is not None]
    others = [(result, figure) for result, figure in pairs if figure.target is None]
    lines = ["# Speed", ""]
    lines += _failures(results)
    lines += [
        "## Targets",
        "",
        "| figure | to reach | median | lowest to highest | values | reached | benchmark |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    for result, figure in with_target:
        reached = "yes" if figure.reached else "**no**"
        lines.append(
            f"| {_cell(figure.name)} | {figure.target} | {_median(figure)} | {figure.range} | "
            f"{len(figure.values)} | {reached} | {result.name} |"
        )
    lines += [
        "",
        "## Other figures",
        "",
        "| figure | median | lowest to highest | values | benchmark |",
        "|---|---:|---:|---:|---|",
    ]
    lines += [
        f"| {_cell(figure.name)} | {_median(figure)} | {figure.range} | {len(figure.values)} | "
        f"{result.name} |"
        for result, figure in others
    ]
    lines += ["", *_runs(results), "", *_machines(results), ""]
    return "\n".join(lines)


def _failures(results: Sequence[Result]) -> list[str]:
    failed = [
        f"- **{result.name} failed** with exit status {result.status}, after "
        f"{len(result.figures)} figures: see {result.name}.log."
        for result in results
        if result.failed
    ]
    return [*failed, ""] if failed else []


def _runs(results: Sequence[Result]) -> list[str]:
    lines = [
        "## Benchmarks",
        "",
        _LOAD,
        "",
        "| benchmark | began | seconds | load before, after | commit | command |",
        "|---|---|---:|---:|---|---|",
    ]
    lines += [
        f"| {result.name} | {result.began_at} | {result.seconds:,.0f} | "
        f"{result.load_before:.2f}, {result.load_after:.2f} | {result.commit} | "
        f"`{_cell(result.command)}` |"
        for result in results
    ]
    return lines


def _machines(results: Sequence[Result]) -> list[str]:
    """A list for each machine that results are from."""
    lines: list[str] = []
    for each in dict.fromkeys(msgspec.json.encode(result.machine) for result in results):
        found = msgspec.json.decode(each, type=Machine)
        names = [result.name for result in results if result.machine == found]
        lines += ["## Machine", "", *(f"- {text}" for text in describe(found))]
        lines += [f"- of {', '.join(names)}", ""]
    return lines[:-1]


def _median(figure: Figure) -> str:
    return f"{number(figure.median)} {figure.unit}".strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
