"""`python -m tests.load.run`: load on the stack that `make dev` runs in this directory.

Exits 1 when any request was answered with another status than it should be, or not at all.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import click
import msgspec

from core.settings import Settings
from deploy.cli import environment
from deploy.errors import CommandError
from deploy.local.files import OPERATOR, RunningStack
from tests.load.report import Plan

_CALLERS_MAX = 8
"""Different callers; users beyond that share tokens."""
_LOCUSTFILE = Path(__file__).with_name("locustfile.py")
_ROOT = _LOCUSTFILE.parent.parent.parent


@click.command()
@click.option("--users", type=click.IntRange(2), default=16, show_default=True)
@click.option("--duration", type=click.IntRange(1), default=60, show_default=True, help="Seconds.")
@click.option("--host", help="Address of the API; that of the running stack unless given.")
@click.option(
    "--think-ms",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    help="How long each user waits between two requests.",
)
@click.option(
    "--build-every",
    type=click.FloatRange(1),
    default=20,
    show_default=True,
    help="Seconds from one build to the next.",
)
def command(users: int, duration: int, host: str | None, think_ms: int, build_every: float) -> None:
    """Puts a realistic mix of requests on a running `make dev`, and prints a short report."""
    settings, found = environment.enter()
    try:
        stack = environment.require_stack(found)
        tokens, operator = asyncio.run(_tokens(stack, settings, min(users, _CALLERS_MAX)))
    except CommandError as error:
        raise click.ClickException(str(error)) from error
    plan = Plan(tokens, operator, duration, think_ms / 1000, build_every)
    arguments = ["--headless", "--only-summary", "--skip-log-setup"]
    arguments += ["--users", str(users), "--spawn-rate", str(users), "--run-time", f"{duration}s"]
    arguments += ["--host", host or stack.environ["K9_URL"], "--stop-timeout", "10"]
    # In a process of its own: gevent is to patch everything before anything else is imported.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "locust", "-f", str(_LOCUSTFILE), *arguments],
        env=os.environ | {"K9_LOAD": msgspec.json.encode(plan).decode(), "PYTHONPATH": str(_ROOT)},
        check=False,
    )
    sys.exit(done.returncode)


async def _tokens(stack: RunningStack, settings: Settings, callers: int) -> tuple[list[str], str]:
    """Tokens of callers, and an operator's."""
    names = [f"load-{number}" for number in range(callers)]
    made = [await stack.fetch_token(settings, name, operator=False) for name in names]
    return made, await stack.fetch_token(settings, OPERATOR, operator=True)


if __name__ == "__main__":
    command()
