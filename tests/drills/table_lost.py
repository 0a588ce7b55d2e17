"""A table is deleted, made again and filled from a backup: `python -m tests.drills.table_lost`."""

from core.dynamo import tables
from deploy.aws.clients import open_client
from deploy.local.sample import PRODUCT
from tests.drills.stack import DrillFailed, compare, run, running_stack, same_neighbors, say
from tests.e2e.dev import run_in
from tests.e2e.tables import contents


async def drill() -> None:
    """While the embeddings table is gone, searches go on from memory; then equal data again."""
    async with running_stack() as stack:
        neighbors = await stack.neighbors(PRODUCT)
        before = await contents(stack.resources)
        await stack.k9("backup", "safe")
        name = stack.settings.table(tables.EMBEDDINGS.name)
        async with open_client("dynamodb", stack.settings) as client:
            await client.update_table(TableName=name, DeletionProtectionEnabled=False)
            await client.delete_table(TableName=name)
        say(f"table {name} deleted")
        same_neighbors(neighbors, await stack.neighbors(PRODUCT))
        status, out, _ = await run_in(stack.dev.directory, "doctor", "--calls", "0")
        if status != 1 or f"failed   table {name}: does not exist" not in out:
            raise DrillFailed("k9 doctor does not name the lost table")
        say("k9 doctor names it")
        await stack.k9("tables", "create")
        say((await stack.k9("restore", "safe", "--force")).strip())
        await stack.k9("doctor", "--calls", "0")
        compare(before, await contents(stack.resources))
        build = neighbors["index"]["build_id"]
        same_neighbors(neighbors, await stack.neighbors(PRODUCT, not_of=build))


if __name__ == "__main__":
    run(drill)
