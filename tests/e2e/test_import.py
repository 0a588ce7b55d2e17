"""Files into the tables: what holds is stored, what does not is named."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from core.errors import PartlyStored
from core.models import Metric
from core.resources import open_resources
from core.settings import Settings
from core.usecases.embeddings import Ingest, Noting, Row
from core.watermarks import Watermark
from deploy import ingest
from deploy.aws.tables import count_items
from deploy.readers import BadRow, open_source
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
    source = open_source(_lines(tmp_path / "a.jsonl", rows))
    bad: list[BadRow] = []
    async with open_resources(own_tables) as resources:
        for _ in range(2):
            bad.clear()
            result = await ingest.import_file(
                resources.ingest, "m1", source, rows_max=50, moved=lambda step: bad.extend(step.bad)
            )
            assert (result.stored, result.bad) == (245, 5)
        model = await resources.models.get_model("m1")
    assert sorted(row.number for row in bad) == [11, 121, 122, 123, 241]
    reasons = {row.number: row.reason for row in bad}
    assert "3" in reasons[121]  # both numbers of a wrong dimension
    assert "2" in reasons[121]
    assert "came before" in reasons[241]
    assert model.dimension == 2
    assert (await count_items(own_tables))[own_tables.table("embeddings")] == 245


class _Throttled(Ingest):
    """Takes only a part of each batch the first time it is sent."""

    def __init__(self, inner: Ingest) -> None:
        self.__dict__.update(inner.__dict__)
        self.refused: set[str] = set()

    async def store_batch(
        self,
        model_version: str,
        rows: Sequence[Row],
        metric: Metric | None = None,
        noting: Noting | None = None,
    ) -> Watermark:
        if rows[0][0] not in self.refused:
            self.refused.add(rows[0][0])
            raise PartlyStored(1, tuple(product_id for product_id, _ in rows[1:]))
        return await super().store_batch(model_version, rows, metric, noting)


async def test_a_batch_that_was_taken_in_part_is_sent_again(
    own_tables: Settings, tmp_path: Path
) -> None:
    """As the whole, which is safe; nothing is reported as bad."""
    vectors = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    ids = np.array([f"t{n}" for n in range(30)])
    np.savez(tmp_path / "a.npz", product_ids=ids, vectors=vectors)
    async with open_resources(own_tables) as resources:
        throttled = _Throttled(resources.ingest)
        result = await ingest.import_file(
            throttled, "m2", open_source(tmp_path / "a.npz"), rows_max=10
        )
        stored = await resources.embeddings.get_embedding("m2", "t29")
    assert (result.stored, result.bad) == (30, 0)
    assert len(throttled.refused) == 3
    assert stored.vector == vectors[29].tobytes()
