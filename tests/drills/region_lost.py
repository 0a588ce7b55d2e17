"""The last backup becomes an environment of another region: `python -m tests.drills.region_lost`.

As far as the emulator goes: its tables are a region's own, its S3 is one for all regions. In an
account the bucket of backups has to be replicated to, or be in, the region that is left.
"""

from time import perf_counter

import msgspec

from core.resources import open_resources
from deploy.aws.clients import open_client
from deploy.aws.data_stack import create_tables
from deploy.aws.tables import describe_tables
from deploy.data.places import parse_place
from deploy.data.restore import restore
from tests.drills.stack import DrillFailed, compare, run, running_stack, say
from tests.e2e.tables import contents

_BUCKET = "k9-drill-backups"
_REGION = "eu-west-1"


async def drill() -> None:
    """Ends with equal data in the other region, and a build requested there."""
    async with running_stack() as stack:
        async with open_client("s3", stack.settings) as client:
            await client.create_bucket(Bucket=_BUCKET)
        before = await contents(stack.resources)
        place = f"s3://{_BUCKET}/drill"
        out = await stack.k9("backup", place)
        name = out.partition(f"{place}/")[2].split()[0]
        aws = msgspec.structs.replace(stack.settings.aws, region=_REGION, bucket=None)
        settings = msgspec.structs.replace(stack.settings, environment="left", aws=aws)
        began = perf_counter()
        made = await create_tables(settings)
        say(f"tables in {_REGION}: {perf_counter() - began:.1f} s")
        here = msgspec.structs.replace(stack.settings, environment="left")
        if any(table.status != "MISSING" for table in await describe_tables(here)):
            raise DrillFailed("the tables are not of the other region")
        aws = msgspec.structs.replace(aws, bucket=made.bucket)
        settings = msgspec.structs.replace(settings, aws=aws).patient()
        began = perf_counter()
        async with open_resources(settings) as resources:
            restored = await restore(resources, parse_place(f"{place}/{name}"))
            say(f"{restored.manifest.items:,} items restored: {perf_counter() - began:.1f} s")
            for build in restored.builds:
                say(f"build of {build.model_version} {build.outcome}: {build.detail}")
            compare(before, await contents(resources))


if __name__ == "__main__":
    run(drill)
