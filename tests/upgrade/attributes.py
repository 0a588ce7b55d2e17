"""Attributes, which the earlier release does not know: it sees no row more, and wipes none."""

from typing import Final
from urllib.parse import quote

import httpx

from tests.upgrade.catalogue import Vectors, store
from tests.upgrade.environment import Environment, code
from tests.upgrade.ledger import listed

MODEL: Final = "attributed"
"""Created by the earlier release: to others it cannot write."""


def _path(product_id: str) -> str:
    return f"/models/{MODEL}/embeddings/{quote(product_id, safe='')}"


async def beside(environment: Environment, rows: dict[str, Vectors]) -> str:
    """Writes of both releases to the same rows, of which new ones have attributes.

    `rows` are a dozen vectors by product id.
    """
    old, new = environment.client("old"), environment.client("new")
    await store(old, MODEL, rows)
    names = list(rows)
    for number, name in enumerate(names):
        changed = await new.patch(_path(name), json={"attributes": {"n": number, "gone": 1}})
        code(changed, httpx.codes.OK)
    put = {"vector": rows[names[0]].tolist(), "attributes": {"n": 0, "put": True}}
    code(await new.put(_path(names[0]), json=put), httpx.codes.OK)
    found = await listed(environment, "old", MODEL)
    assert found.keys() == rows.keys(), found.keys() ^ rows.keys()
    assert "attributes" not in code(await old.get(_path(names[0])), httpx.codes.OK).json()
    code(await old.put(_path(names[1]), json={"vector": put["vector"]}), httpx.codes.OK)
    await store(old, MODEL, dict(list(rows.items())[2:]))
    for number, name in enumerate(names[1:], 1):
        item = code(await new.get(_path(name)), httpx.codes.OK).json()
        assert item["attributes"] == {"n": number, "gone": 1}, item
    code(await new.delete(_path(names[2])), httpx.codes.NO_CONTENT)
    code(await old.get(_path(names[2])), httpx.codes.NOT_FOUND)
    code(await old.put(_path(names[2]), json={"vector": put["vector"]}), httpx.codes.CREATED)
    assert "attributes" not in code(await new.get(_path(names[2])), httpx.codes.OK).json()
    code(await old.delete(_path(names[3])), httpx.codes.NO_CONTENT)
    change = {"attributes": {"late": 1}}
    code(await new.patch(_path(names[3]), json=change), httpx.codes.NOT_FOUND)
    code(await new.get(_path(names[3])), httpx.codes.NOT_FOUND)
    assert (await listed(environment, "old", MODEL)).keys() == rows.keys() - {names[3]}
    assert (await listed(environment, "new", MODEL)).keys() == rows.keys() - {names[3]}
    return f"{len(rows)} rows; put, stored in batches and deleted through both"
