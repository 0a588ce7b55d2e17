"""Rows of every kind in every table, and all of them again as bytes."""

from typing import Any

import msgspec
import numpy as np

from core.dynamo import tables
from core.dynamo.wire import AttributeValue, Item, item_of
from core.models import Build, BuildParameters
from core.resources import Resources
from deploy.data.bulk import delete_batch, put_batch, scan_segment

Contents = dict[str, dict[bytes, bytes]]

ODD: dict[str, Any] = {
    "empty": {"S": ""},
    "text": {"S": "é\u0000\n𝄞"},
    "whole": {"N": "12345678901234567890123456789012345678"},
    "small": {"N": "-1E-130"},
    "large": {"N": "9.9999999999999999999999999999999999999E+125"},
    "fraction": {"N": "0.1"},
    "binary": {"B": bytes(range(256))},
    "no_bytes": {"B": b""},
    "yes": {"BOOL": True},
    "no": {"BOOL": False},
    "nothing": {"NULL": True},
    "map": {"M": {"x": {"S": ""}, "a.b": {"L": [{"L": []}, {"N": "7"}, {"B": b"\xff"}]}}},
    "list": {"L": [{"S": ""}, {"NULL": True}]},
    "texts": {"SS": ["a", "é", " "]},
    "numbers": {"NS": ["1", "-2.5", "12345678901234567890"]},
    "binaries": {"BS": [b"\x00", b"\xff\xfe"]},
}


async def fill(resources: Resources, rows: int = 60) -> Build:
    """Rows of every table, among them a build that runs; that build."""
    settings = resources.settings
    vectors = np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float32)
    await resources.embedding_service.store_batch(
        "m1", [(f"p/{n} é", vectors[n]) for n in range(rows)]
    )
    await resources.embedding_service.patch_attributes("m1", "p/1 é", {"price": 1e308})
    await resources.embedding_service.delete_embedding("m1", "p/0 é")
    await resources.embedding_service.store_embedding("m2", "gone", vectors[0])
    await resources.embedding_service.delete_embedding("m2", "gone")
    for number in range(30):
        await resources.user_service.create(
            f"u{number}", {"name": "N"}, b'{"a": 1e-300, "": [1.0]}'
        )
        await resources.report_service.create(f"u{number}", {"title": "T", "favorites": ["b", "a"]})
    await resources.idempotency.begin("user/u1", "key", "print")
    for table in ("users", "idempotency"):
        key = {"users": ("user_id",), "idempotency": ("caller", "key")}[table]
        odd = [{**ODD, **{name: {"S": f"odd-{n}"} for name in key}} for n in range(20)]
        await put_batch(resources.dynamo, settings.table(table), [item_of(item) for item in odd])
    first = await resources.build_service.request("m1", BuildParameters(matrix_k=7, force=True))
    claimed = await resources.builds.claim(first.build_id, 0)
    model = await resources.models.get_model("m1")
    await resources.promotions.publish(claimed, model, {"epoch": 0})
    second = await resources.build_service.request("m1", BuildParameters())
    return await resources.builds.claim(second.build_id, 0)


def _key(table: tables.Table, item: Item) -> bytes:
    return msgspec.json.encode([item[name] for name in table.key.attributes])


async def contents(resources: Resources) -> Contents:
    """Every item of every table, as bytes. A set has no order."""

    def text(item: Item) -> bytes:
        ordered = {
            name: AttributeValue(SS=sorted(value.SS))
            if value.SS
            else AttributeValue(NS=sorted(value.NS))
            if value.NS
            else AttributeValue(BS=sorted(value.BS))
            if value.BS
            else value
            for name, value in item.items()
        }
        return msgspec.json.encode(ordered, order="deterministic")

    found: Contents = {}
    for table in tables.ALL:
        name = resources.settings.table(table.name)
        found[table.name] = {
            _key(table, item): text(item)
            async for page in scan_segment(resources.dynamo, name, 0, 1)
            for item in page
        }
    return found


async def wipe(resources: Resources) -> None:
    """Deletes every item of every table."""
    for table in tables.ALL:
        name = resources.settings.table(table.name)
        async for page in scan_segment(resources.dynamo, name, 0, 1):
            for start in range(0, len(page), 25):
                await delete_batch(resources.dynamo, name, table.key, page[start : start + 25])


EXEMPT = ("models", "builds")
"""Tables in which a restore changes some attributes, on purpose."""
