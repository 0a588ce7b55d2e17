"""`k9 neighbors`."""

import click

from deploy.api_client import path_of
from deploy.cli import environment
from deploy.terminal import index_line, neighbor_table, standard_output


@click.command("neighbors")
@click.argument("model")
@click.argument("product_id")
@click.option("--k", type=int, default=10, show_default=True)
@environment.async_command
async def command(model: str, product_id: str, k: int) -> None:
    """Shows the products of MODEL that are nearest to PRODUCT_ID."""
    path = path_of("models", model, "products", product_id, "neighbors")
    async with environment.open_api() as api:
        answer = await api.call("GET", path, query={"k": k})
    standard_output().print(neighbor_table(answer))
    click.echo(f"\n{index_line(answer['index'])}")
