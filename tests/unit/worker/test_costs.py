"""What a build is said to cost."""

import math

from core.models import Build, BuildParameters, Embedding
from core.repositories.build_rows import open_row, row_bytes
from worker.building.costs import BuildCosts
from worker.building.protocol import Usage

BUILD = Build(
    build_id="b" * 32,
    model_version="m-1",
    status="running",
    requested_at="2026-01-01T00:00:00.000000Z",
    parameters=BuildParameters(),
)
USAGE = Usage(processor_s=1.5, peak_bytes=3_000_000)


def row(product_id: str, dimension: int = 384) -> Embedding:
    """An embedding of so many numbers."""
    moment = "2026-01-01T00:00:00.000000Z"
    return Embedding(product_id, "m-1", bytes(4 * dimension), dimension, moment)


def test_pages_are_rounded_up_one_by_one() -> None:
    """Each is a query of its own, at half a unit a 4 KB; ids count in bytes."""
    costs = BuildCosts(BUILD)
    for product_id in ("p1", "商品", "p2"):
        costs.count_page([row(product_id)])
    cost = costs.total(USAGE, 7, 2)
    overhead = cost["read_bytes"] - 3 * 1536 - 2 - 2 - 6
    assert 3 * 100 < overhead < 3 * 250
    assert (cost["rows_read"], cost["read_units"]) == (3, 1.5)
    assert (cost["s3_requests"], cost["processor_s"], cost["peak_memory_bytes"]) == (
        7,
        1.5,
        3_000_000,
    )


def test_writes_are_counted_in_the_table_and_its_indexes() -> None:
    """The claim and each heartbeat thrice; the publishing twice in the table, once an index."""
    costs = BuildCosts(BUILD)
    for _ in range(4):
        costs.count_heartbeat()
    manifest_bytes = 5000
    small = math.ceil(row_bytes(open_row(BUILD)) / 1024)
    large = math.ceil((row_bytes(open_row(BUILD)) + manifest_bytes) / 1024)
    cost = costs.total(USAGE, 0, manifest_bytes)
    beats = 5 * 3 * small
    # The row leaves the index of open builds, and the model's row is in the transaction too.
    assert cost["write_units"] == beats + (2 * large + large + small) + 2
