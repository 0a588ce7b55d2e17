"""`python -m tests.observability.page`: the tables of deploy/docs/metrics.md, from the code.

The page's text is written by hand, around two marks; a test compares what is between them.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

import api.metrics
import worker.metrics

PAGE: Final = Path(__file__).parents[2] / "deploy/docs/metrics.md"
BEGIN: Final = "<!-- from the code: make metrics-page -->"
END: Final = "<!-- end -->"
_UNITS: Final = {
    "_timestamp_seconds": "Unix time in seconds",
    "_seconds": "seconds",
    "_bytes": "bytes",
    "_rows": "rows",
    "_units_total": "capacity units",
}


def defined() -> dict[str, MetricWrapperBase]:
    """Every metric that the code defines, by the name that a query has."""
    collectors: dict[Any, list[str]] = REGISTRY._collector_to_names  # noqa: SLF001 - no other way
    found = {}
    for collector in collectors:
        if isinstance(collector, MetricWrapperBase) and collector._name.startswith("k9_"):  # noqa: SLF001
            total = "_total" if collector._type == "counter" else ""  # noqa: SLF001
            found[collector._name + total] = collector  # noqa: SLF001
    return dict(sorted(found.items()))


def rows() -> Iterator[str]:
    """The table of the page."""
    yield "| metric | process | type | labels | unit | meaning |"
    yield "|---|---|---|---|---|---|"
    for name, metric in defined().items():
        labels = ", ".join(f"`{label}`" for label in metric._labelnames)  # noqa: SLF001
        unit = next((unit for end, unit in _UNITS.items() if name.endswith(end)), "")
        meaning = metric._documentation  # noqa: SLF001
        kind = metric._type  # noqa: SLF001
        yield f"| `{name}` | {_process(metric)} | {kind} | {labels} | {unit} | {meaning} |"


def _process(metric: MetricWrapperBase) -> str:
    """Which process serves it, by the module that defines it."""
    if any(metric is each for each in vars(api.metrics).values()):
        return "API"
    return "worker" if any(metric is each for each in vars(worker.metrics).values()) else "both"


def table_of(text: str) -> str:
    """What stands between the marks."""
    return text.partition(BEGIN)[2].partition(END)[0].strip()


def main() -> None:
    """Writes the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    table = "\n".join(rows())
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")


if __name__ == "__main__":
    main()
