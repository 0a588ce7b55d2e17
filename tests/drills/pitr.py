"""Point-in-time recovery in place: `python -m tests.drills.pitr`.

The embedded DynamoDB restores the rows of now, whatever the time, which is shown first. So the new
tables are made while now is the time to go back to; all steps after that are the real ones.
"""

from datetime import datetime, timedelta

import numpy as np

from core.dynamo import tables
from core.models import now, timestamp
from core.resources import Resources, open_resources
from deploy.data.bulk import delete_batch, scan_segment
from deploy.data.pitr import restore_to_time, restored_settings
from deploy.local.sample import PRODUCT
from tests.drills.stack import MODEL, Stack, compare, run, running_stack, same_neighbors, say
from tests.e2e.tables import EXEMPT, Contents, contents

_DELETED = 500


async def drill() -> None:
    """Rows are deleted, changed and added, and the time before that comes back."""
    async with running_stack() as stack:
        resources = stack.resources
        for number in range(20):
            user = f"user-{number}"
            await resources.user_service.create(user, {"name": "N"}, b"{}")
            await resources.report_service.create(user, {"title": "T"})
        neighbors = await stack.neighbors(PRODUCT)
        before = await contents(resources)
        moment = now() - timedelta(seconds=1)
        await restore_to_time(resources.settings, moment, "before", served=False)
        say(f"{sum(map(len, before.values())):,} rows restored into new tables")
        await _damage(resources)
        say(f"{_DELETED} embeddings deleted, one changed, one and a user added")
        source = "before"
        if await _has_history(stack, moment, before):
            source = "history"
        out = await stack.k9(
            *("restore", "--to-time", timestamp(moment), "--into", source),
            *("--copy-back", "--writes-stopped"),
        )
        say(out.strip())
        compare(before, await contents(resources))
        build = neighbors["index"]["build_id"]
        same_neighbors(neighbors, await stack.neighbors(PRODUCT, not_of=build))


async def _damage(resources: Resources) -> None:
    name = resources.settings.table(tables.EMBEDDINGS.name)
    doomed = [item async for page in scan_segment(resources.dynamo, name) for item in page]
    for start in range(0, _DELETED, 25):
        batch = doomed[start : start + 25]
        await delete_batch(resources.dynamo, name, tables.EMBEDDINGS.key, batch)
    rng = np.random.default_rng(0)
    for product_id in (PRODUCT, "of-later"):
        vector = rng.normal(size=384).astype(np.float32)
        await resources.embedding_service.store_embedding(MODEL, product_id, vector)
    await resources.user_service.create("of-later", {"name": "L"}, b"{}")


async def _has_history(stack: Stack, moment: datetime, before: Contents) -> bool:
    """Whether DynamoDB restores the rows of that moment, and not those of now."""
    await restore_to_time(stack.settings, moment, "history", served=False)
    async with open_resources(restored_settings(stack.settings, "history")) as restored:
        found = await contents(restored)
    earlier = all(found[table] == before[table] for table in before if table not in EXEMPT)
    if earlier:
        say("this DynamoDB restores the rows of the time")
    else:
        say("this DynamoDB keeps no history: it restored the rows of now, the damaged ones")
    return earlier


if __name__ == "__main__":
    run(drill)
