"""`k9 neighbors`."""

import click

from deploy.api_client import path_of
from deploy.cli import environment
from deploy.terminal import index_line, neighbor_table, standard_output


@click.command("neighbors")
@click.argument("model")
@click.argument("product_id")
@click.option("--k", type=int, default=10, show_default=True)
@click.option(
    "--filter",
    "condition",
    metavar="JSON",
    help='Shows only products whose attributes match, as in a search: \'{"price": {"$lt": 50}}\'.',
)
@environment.async_command
async def command(model: str, product_id: str, k: int, condition: str | None) -> None:
    """Shows the products of MODEL that are nearest to PRODUCT_ID."""
    path = path_of("models", model, "products", product_id, "neighbors")
    async with environment.open_api() as api:
        query: dict[str, int | str] = {"k": k}
        if condition is not None:
            query["filter"] = condition
        answer = await api.call("GET", path, query=query)
    standard_output().print(neighbor_table(answer))
    click.echo(f"\n{index_line(answer['index'])}")
