"""`k9 token`."""

import click

from deploy.cli import environment


@click.command("token")
@click.option("--user", default="dev", show_default=True, help="Created if it does not exist.")
@click.option("--operator", is_flag=True, help="With the right to write embeddings and to build.")
@environment.async_command
async def command(user: str, *, operator: bool) -> None:
    """Prints an access token of the embedded user pool, valid for 24 hours.

    Without --operator the user may search and manage its own profile and reports, and no more.
    """
    settings, stack = environment.enter()
    stack = environment.require_stack(stack)
    if not user.strip():
        raise click.BadParameter("must not be blank", param_hint="--user")
    click.echo(await stack.fetch_token(settings, user, operator=operator))
