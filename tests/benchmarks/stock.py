"""A model version on a site: rows stored as an import stores them, and a build of them."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from core.models import Build, BuildParameters
from core.resources import Resources
from core.vectors.arrays import Floats

Catalogue = dict[str, Floats]
"""Product id → float32 (d,)."""
_BATCH_ROWS: Final = 1000


async def store(resources: Resources, model_version: str, rows: Catalogue) -> None:
    """Stores rows in batches, the first one alone, since it fixes the dimension."""
    ids = list(rows)
    starts = range(0, len(ids), _BATCH_ROWS)
    batches = [[(i, rows[i]) for i in ids[start : start + _BATCH_ROWS]] for start in starts]
    write = resources.embedding_service.store_batch
    await write(model_version, batches[0])
    await few_at_once([write(model_version, batch) for batch in batches[1:]])


async def published(
    resources: Resources, model_version: str, parameters: BuildParameters | None = None
) -> Build:
    """Has a build made, and waits for its end.

    Raises:
        RuntimeError: it was not published.
    """
    asked = parameters or BuildParameters()
    build = await resources.build_service.request(model_version, asked)
    while build.open:
        await asyncio.sleep(0.2)
        build = await resources.builds.get_build(build.build_id)
    if build.status != "published":
        raise RuntimeError(f"the build {build.status}: {build.error}")
    return build


async def few_at_once(work: list[Coroutine[Any, Any, Any]]) -> None:
    """Does all of it, a few at a time."""
    places = asyncio.Semaphore(4)

    async def one(coroutine: Coroutine[Any, Any, Any]) -> None:
        async with places:
            await coroutine

    await asyncio.gather(*map(one, work))
