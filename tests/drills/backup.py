"""A backup into a bucket, everything lost, and back: `python -m tests.drills.backup`."""

from deploy.aws.clients import open_client
from deploy.local.sample import PRODUCT
from tests.drills.stack import compare, run, running_stack, same_neighbors, say
from tests.e2e.tables import contents, wipe

_BUCKET = "k9-drill-backups"


async def drill() -> None:
    """Ends with equal data, and the same neighbours from an index of a new build."""
    async with running_stack() as stack:
        async with open_client("s3", stack.settings) as client:
            await client.create_bucket(Bucket=_BUCKET)
        neighbors = await stack.neighbors(PRODUCT)
        before = await contents(stack.resources)
        place = f"s3://{_BUCKET}/drill"
        out = await stack.k9("backup", place)
        say(out.strip())
        name = out.partition(f"{place}/")[2].split()[0]
        await wipe(stack.resources)
        say("every row of every table deleted")
        say((await stack.k9("restore", f"{place}/{name}")).strip())
        compare(before, await contents(stack.resources))
        build = neighbors["index"]["build_id"]
        same_neighbors(neighbors, await stack.neighbors(PRODUCT, not_of=build))


if __name__ == "__main__":
    run(drill)
