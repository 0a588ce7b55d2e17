"""`k9 token`."""

import asyncio

import click

from deploy.cli import environment


@click.command("token")
@click.option("--user", default="dev", show_default=True, help="Made if there is none yet.")
@click.option("--operator", is_flag=True, help="With the right to write embeddings and to build.")
def command(user: str, *, operator: bool) -> None:
    """Prints an access token of the embedded user pool, good for 24 hours.

    Without --operator the user may search and see to its own reports, and no more.
    """
    settings, stack = environment.enter()
    running = environment.need(stack)
    if not user.strip():
        raise click.BadParameter("must not be blank", param_hint="--user")
    click.echo(asyncio.run(environment.token_of(running, settings, user, operator=operator)))
