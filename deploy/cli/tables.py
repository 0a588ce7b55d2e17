"""`k9 tables create · describe · counts`."""

import asyncio

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from deploy.aws.data_stack import Protection, create_tables
from deploy.aws.tables import count_items, describe_tables
from deploy.cli import environment
from deploy.errors import CommandError
from deploy.terminal import standard_output


@click.group("tables")
def command() -> None:
    """The tables of an environment (K9_ENVIRONMENT, `dev` where it is not set)."""


@command.command("create")
@click.option(
    "--protection",
    type=click.Choice(["auto", "true", "false"]),
    default="auto",
    show_default=True,
    help="Against deletion of the tables; auto is on everywhere but in `dev`.",
)
def create(protection: Protection) -> None:
    """Creates the tables and the bucket, or brings them up to the template."""
    settings, _ = environment.enter()

    def report(line: str) -> None:
        click.echo(line, err=True)

    made = asyncio.run(create_tables(settings, protection=protection, report=report))
    click.echo(f"{made.name}: {made.change}; the bucket is {made.bucket}")


@command.command("describe")
def describe() -> None:
    """Shows keys, indexes, sizes and safeguards. Sizes are up to six hours old."""
    settings, _ = environment.enter()
    tables = asyncio.run(describe_tables(settings))
    shown = Table(show_edge=False, pad_edge=False)
    for name in ("table", "status", "key", "indexes", "safeguards"):
        shown.add_column(name, overflow="fold")
    for name in ("items", "bytes"):
        shown.add_column(name, justify="right")
    for table in tables:
        safeguards = {
            "PITR": table.recovery,
            "KMS": table.encrypted,
            "protected": table.deletion_protection,
            f"TTL {table.ttl_attribute}": table.ttl_attribute is not None,
        }
        shown.add_row(
            table.name,
            table.status.lower(),
            table.key,
            ", ".join(table.indexes),
            ", ".join(name for name, on in safeguards.items() if on),
            f"{table.items:,}",
            f"{table.size_bytes:,}",
        )
    standard_output().print(shown)
    missing = [table.name for table in tables if table.status == "MISSING"]
    if missing:
        raise CommandError(f"{len(missing)} tables are missing: `k9 tables create` makes them")


@command.command("counts")
@click.option(
    "--approximate", is_flag=True, help="DynamoDB's own figures, free and up to six hours old."
)
def counts(*, approximate: bool) -> None:
    """Counts the rows of each table, deleted embeddings' tombstones included.

    Exact unless told otherwise: that reads every table whole, which costs read units.
    """
    settings, _ = environment.enter()
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task("counting", total=None)
        so_far = 0

        def counted(_table: str, items: int) -> None:
            nonlocal so_far
            so_far += items
            progress.update(task, description=f"counting: {so_far:,}")

        found = asyncio.run(count_items(settings, exact=not approximate, counted=counted))
    shown = Table("table", show_edge=False, pad_edge=False)
    shown.add_column("items (up to 6 h old)" if approximate else "items", justify="right")
    for name, items in found.items():
        shown.add_row(name, f"{items:,}")
    standard_output().print(shown)
