"""Bytes and units of a stored embedding: K9's Binary against a list of numbers.

    python -m tests.benchmarks.layouts

Each row of the sample catalogue (384 numbers) is sized as DynamoDB counts it, by the code that
stores it, and again with the vector as a list of numbers, in two ways to write one: as Python
prints a float, which is what `Decimal(str(number))` stores, and with the fewest digits that give
the same float32. Nothing is timed, so there are no turns: the spread is that over the rows. A write
unit is 1 KB, of the table and again of its index. A pull reads pages, 8 KB a unit. A single read
takes one unit of 4 KB in either layout, so it is not in the table.

Exits with 1 when bytes or units are over 0.5 of the list's as Python prints it.
"""

import math
import sys
from collections.abc import Callable
from typing import Any, Final

from core.models import Model
from core.repositories.embedding_rows import live_row
from core.vectors.arrays import Floats
from tests.benchmarks.decode import stored_bytes
from tests.benchmarks.figures import Report, at_most, ratios
from tests.benchmarks.published import SAMPLE, read

TO_REACH: Final = 0.5
_AT: Final = "2026-01-01T00:00:00.000000Z"
_MODEL: Final = Model("minilm-l6-v2", 384, "cosine", 8, _AT)
_VECTOR: Final = "embedding_vector"
_UNITS: Final[dict[str, Callable[[int], float]]] = {
    "bytes": float,
    "write units": lambda size: math.ceil(size / 1024),
    "pull units": lambda size: size / 8192,
}


def size_of(item: dict[str, Any]) -> int:
    """An item's size as DynamoDB counts it, names included."""
    return sum(len(name) + stored_bytes(value) for name, value in item.items())


def sizes(product_id: str, vector: Floats) -> dict[str, int]:
    """The size of one row in each layout."""
    item = live_row(_MODEL, product_id, vector.tobytes(), _AT)
    printed, shortest = map(str, vector.tolist()), map(str, vector)
    return {
        "Binary": size_of(item),
        "list": size_of(item | {_VECTOR: {"L": [{"N": number} for number in printed]}}),
        "list, fewest digits": size_of(
            item | {_VECTOR: {"L": [{"N": number} for number in shortest]}}
        ),
    }


def main() -> int:
    """Reports the figures; the exit status."""
    rows = [sizes(product_id, vector) for product_id, vector in read(SAMPLE).items()]
    report = Report()
    for name, unit in _UNITS.items():
        units = {layout: [unit(row[layout]) for row in rows] for layout in rows[0]}
        for layout, each in units.items():
            report.add(f"a row's {name}, {layout}", each)
        binary = units["Binary"]
        compared = ratios(binary, units["list"])
        report.add(f"{name}: Binary to list", compared, target=at_most(TO_REACH))
        fewest = ratios(binary, units["list, fewest digits"])
        report.add(f"{name}: Binary to list, fewest digits", fewest)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
