"""`k9 tables create · describe · counts`."""

import click
from rich.table import Table

from deploy.aws.data_stack import Protection, create_tables
from deploy.aws.tables import TableDescription, describe_tables
from deploy.cli import environment
from deploy.errors import CommandError
from deploy.terminal import progress_display, standard_output


@click.group("tables")
def command() -> None:
    """The tables of an environment (K9_ENVIRONMENT, by default `dev`)."""


@command.command("create")
@click.option(
    "--protection",
    type=click.Choice(["auto", "true", "false"]),
    default="auto",
    show_default=True,
    help="Against deletion of the tables; auto is on everywhere but in `dev`.",
)
@environment.async_command
async def create(protection: Protection) -> None:
    """Creates the tables and the bucket, or updates them to the template."""
    settings, _ = environment.enter()
    made = await create_tables(settings, protection=protection, message=environment.say)
    click.echo(f"{made.name}: {made.change}; the bucket is {made.bucket}")


@command.command("describe")
@environment.async_command
async def describe() -> None:
    """Shows keys, indexes, sizes, safeguards, and what a month costs at today's rate.

    Sizes are up to six hours old. The rate is that of the last 24 hours, by CloudWatch; where that
    cannot be asked, the cost is that of the size alone.
    """
    from deploy.aws import costs, prices  # noqa: PLC0415 - see `environment`

    settings, _ = environment.enter()
    tables = await describe_tables(settings)
    existing = [table for table in tables if table.status != "MISSING"]
    consumed = await costs.read_consumption(settings, existing)
    known = {} if isinstance(consumed, str) else consumed
    total = 0.0
    shown = Table(show_edge=False, pad_edge=False)
    for name in ("table", "status", "key", "indexes", "safeguards", "capacity"):
        shown.add_column(name, overflow="fold")
    for name in ("items", "bytes", "$ a month"):
        shown.add_column(name, justify="right")
    for table in tables:
        cost = costs.monthly_cost(table, known.get(table.name))
        total += cost.total
        shown.add_row(
            table.name,
            table.status.lower(),
            table.key,
            ", ".join(table.indexes),
            ", ".join(_safeguards(table)),
            "on demand" if table.provisioned is None else "{}/{} units".format(*table.provisioned),
            f"{table.items:,}",
            f"{table.size_bytes + table.index_bytes:,}",
            f"{cost.total:,.2f}",
        )
    standard_output().print(shown)
    where = f"prices of {prices.REGION} as of {prices.AS_OF}, without free tier"
    click.echo(f"${total:,.2f} a month: storage, recovery and requests, {where}")
    if isinstance(consumed, str):
        click.echo(f"requests are not in it, since their number is not known: {consumed}")
    missing = [table.name for table in tables if table.status == "MISSING"]
    if missing:
        raise CommandError(f"{len(missing)} tables are missing: `k9 tables create` creates them")


def _safeguards(table: TableDescription) -> list[str]:
    safeguards = {
        "PITR": table.recovery,
        "KMS": table.encrypted,
        "protected": table.deletion_protection,
        f"TTL {table.ttl_attribute}": table.ttl_attribute is not None,
    }
    return [name for name, on in safeguards.items() if on]


@command.command("counts")
@click.option(
    "--approximate", is_flag=True, help="DynamoDB's own figures, free and up to six hours old."
)
@environment.async_command
async def counts(*, approximate: bool) -> None:
    """Counts the rows of each table, tombstones of deleted embeddings included.

    Exact by default: every table is read whole, which costs read units.
    """
    from deploy.data.bulk import count_items  # noqa: PLC0415 - see `environment`

    settings, _ = environment.enter()
    found = {table.name: table for table in await describe_tables(settings)}
    for name, table in found.items():
        if table.status == "MISSING":
            raise CommandError(f"table {name} does not exist: `k9 tables create` creates it")
    items = {name: table.items for name, table in found.items()}
    if not approximate:
        async with environment.open_resources(settings) as resources:
            with progress_display() as display:
                items = await count_items(resources.dynamo, settings, display.update)
    shown = Table("table", show_edge=False, pad_edge=False)
    shown.add_column("items (up to 6 h old)" if approximate else "items", justify="right")
    for name, count in items.items():
        shown.add_row(name, f"{count:,}")
    standard_output().print(shown)
