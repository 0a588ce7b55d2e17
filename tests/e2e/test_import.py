"""Files into the tables: what holds is stored, what does not is named."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from core.embedding_files.importing import import_file
from core.embedding_files.readers import open_embeddings
from core.errors import PartlyStored
from core.models import BadRow, Metric
from core.repositories.idempotency import Claim
from core.resources import open_resources
from core.results import StoredBatch
from core.settings import Settings
from core.usecases.embeddings import EmbeddingService, MalformedRows, Row, RowAttributes
from tests.e2e.commands import item_counts, run_k9
from tests.emulators import create_tables, settings_for


def _lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
async def own_tables(ministack: str) -> Settings:
    """Tables on one emulator: what differs between the two is the contract suites' to find."""
    return await create_tables(settings_for(ministack))


async def test_bad_rows_are_named_and_lose_no_other(own_tables: Settings, tmp_path: Path) -> None:
    """Over several batches in flight; and a second run stores the same again."""
    rows: list[object] = [{"product_id": f"p/{n} %é", "vector": [n + 1.0, 1.0]} for n in range(250)]
    rows[10] = {"product_id": "p/10", "vector": [0, 0]}
    rows[120] = {"product_id": "p/120", "vector": [1, 2, 3]}
    rows[121] = {"product_id": "..", "vector": [1, 2]}
    rows[122] = {"product_id": "big", "vector": [1e39, 2]}
    rows[240] = rows[3]
    bad: list[BadRow] = []
    path = _lines(tmp_path / "a.jsonl", rows)
    async with open_resources(own_tables) as resources:
        for _ in range(2):
            bad.clear()
            with open_embeddings(path) as source:
                result = await import_file(
                    resources.embedding_service,
                    "m1",
                    source,
                    rows_max=50,
                    on_batch=lambda step: bad.extend(step.bad),
                )
            assert (result.stored, result.bad) == (245, 5)
        model = await resources.models.get_model("m1")
    assert sorted(row.number for row in bad) == [11, 121, 122, 123, 241]
    reasons = {row.number: row.reason for row in bad}
    assert "3" in reasons[121]  # both numbers of a wrong dimension
    assert "2" in reasons[121]
    assert "came before" in reasons[241]
    assert model.dimension == 2
    assert (await item_counts(own_tables))[own_tables.table("embeddings")] == 245


async def test_attributes_are_imported_by_the_command(own_tables: Settings, tmp_path: Path) -> None:
    """Those that are named replace what was there; without any all stay; bad rows are named."""
    rows: list[object] = [
        {"product_id": f"p{n}", "vector": [n + 1.0, 1.0], "price": n / 2, "tags": ["a", f"t{n}"]}
        for n in range(130)
    ]
    rows[7] = {"product_id": "p7", "vector": [1, 2], "price": {"net": 1}}
    rows[8] = {"product_id": "p8", "vector": [1, 2]}
    path = _lines(tmp_path / "a.jsonl", rows)
    importing = ("import", str(path), "--model", "m3")
    status, _, error = await run_k9(own_tables, tmp_path, *importing, "--attributes", "price,tags")
    assert status == 1
    assert "a.jsonl:8 ('p7'): attributes.price is not a string, number" in error
    assert "1 rows are not valid; 129 were stored" in error
    status, _, error = await run_k9(own_tables, tmp_path, *importing)
    assert status == 0, error
    async with open_resources(own_tables) as resources:
        model = await resources.models.get_model("m3")
        assert model.has_attributes
        found = {
            name: (await resources.embeddings.get_embedding("m3", name)).attributes
            for name in ("p6", "p7", "p8", "p129")
        }
    assert found == {
        "p6": {"price": 3.0, "tags": ["a", "t6"]},
        "p7": None,
        "p8": None,
        "p129": {"price": 64.5, "tags": ["a", "t129"]},
    }
    status, _, error = await run_k9(own_tables, tmp_path, *importing, "--attributes", "a b")
    assert status == 1
    assert "'a b' is no name of an attribute" in error


class _Throttled(EmbeddingService):
    """Takes only a part of each batch the first time it is sent."""

    def __init__(self, inner: EmbeddingService) -> None:
        self.__dict__.update(inner.__dict__)
        self.refused: set[str] = set()

    async def store_batch(
        self,
        model_version: str,
        rows: Sequence[Row],
        metric: Metric | None = None,
        claim: Claim | None = None,
        *,
        malformed: MalformedRows = MappingProxyType({}),
        attributes: RowAttributes = (),
    ) -> StoredBatch:
        if rows[0][0] not in self.refused:
            self.refused.add(rows[0][0])
            raise PartlyStored(1, tuple(product_id for product_id, _ in rows[1:]))
        return await super().store_batch(
            model_version, rows, metric, claim, malformed=malformed, attributes=attributes
        )


async def test_a_batch_that_was_taken_in_part_is_sent_again(
    own_tables: Settings, tmp_path: Path
) -> None:
    """As the whole, which is safe; nothing is reported as bad."""
    vectors = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    ids = np.array([f"t{n}" for n in range(30)])
    np.savez(tmp_path / "a.npz", product_ids=ids, vectors=vectors)
    async with open_resources(own_tables) as resources:
        throttled = _Throttled(resources.embedding_service)
        with open_embeddings(tmp_path / "a.npz") as source:
            result = await import_file(throttled, "m2", source, rows_max=10)
        stored = await resources.embeddings.get_embedding("m2", "t29")
    assert (result.stored, result.bad) == (30, 0)
    assert len(throttled.refused) == 3
    assert stored.vector == vectors[29].tobytes()


CASES = Path(__file__).parents[1] / "cases"


@pytest.mark.parametrize(
    ("name", "stored", "bad"),
    [("a14_first_short.parquet", 9, [1]), ("a14_bad.parquet", 10, [1, 2, 3, 4, 5, 6, 7])],
)
async def test_most_rows_fix_the_dimension_of_a_new_model(
    own_tables: Settings, name: str, stored: int, bad: list[int]
) -> None:
    """A short first row, or bad ones, are named; every good one is stored."""
    found: list[int] = []
    async with open_resources(own_tables) as resources:
        with open_embeddings(CASES / name) as source:
            result = await import_file(
                resources.embedding_service,
                "m3",
                source,
                rows_max=1000,
                on_batch=lambda step: found.extend(row.number for row in step.bad),
            )
        model = await resources.models.get_model("m3")
    assert (result.stored, found) == (stored, bad)
    assert model.dimension == 4


async def test_a_new_model_without_a_common_dimension_is_refused(
    own_tables: Settings, tmp_path: Path
) -> None:
    """As many rows of one dimension as of another: one line says so, and nothing is written."""
    rows = [{"product_id": f"p{n}", "vector": [1.0] * (2 + n % 2)} for n in range(20)]
    _lines(tmp_path / "a.jsonl", rows)
    status, _, error = await run_k9(own_tables, tmp_path, "import", "a.jsonl", "--model", "m4")
    assert status == 1
    assert len(error.splitlines()) == 1
    assert "2 (rows: 10), 3 (rows: 10)" in error
    async with open_resources(own_tables) as resources:
        assert await resources.models.list_models() == []
    assert (await item_counts(own_tables))[own_tables.table("embeddings")] == 0


async def test_a_block_of_bad_rows_decides_nothing(own_tables: Settings, tmp_path: Path) -> None:
    """The dimension is that of the first block with a valid vector."""
    rows: list[object] = [{"product_id": f"z{n}", "vector": [0, 0, 0]} for n in range(10)]
    rows += [{"product_id": f"p{n}", "vector": [1, 2]} for n in range(10)]
    path = _lines(tmp_path / "a.jsonl", rows)
    async with open_resources(own_tables) as resources:
        with open_embeddings(path) as source:
            result = await import_file(resources.embedding_service, "m5", source, rows_max=10)
        assert (await resources.models.get_model("m5")).dimension == 2
    assert (result.stored, result.bad) == (10, 10)
