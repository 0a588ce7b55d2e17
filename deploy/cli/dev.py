"""`k9 dev`."""

import asyncio
import os
from contextlib import ExitStack
from pathlib import Path

import click

from core.settings import Settings
from deploy.errors import CommandError
from deploy.local.files import DEFAULT_DIR, DataDir, locked
from deploy.terminal import standard_output


@click.command("dev")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=3001,
    show_default=True,
    help="Of the API; 0 chooses free ports for everything.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_DIR,
    show_default=True,
    help="Where the data is kept between runs.",
)
@click.option("--empty", is_flag=True, help="Does not load the sample catalogue.")
def command(port: int, data: Path, *, empty: bool) -> None:
    """Runs the embedded AWS and Valkey, the API and a worker, until Ctrl-C.

    The first start loads the sample catalogue and builds its index. The other commands find the
    stack by themselves when they run in the same directory.
    """
    try:
        from deploy.local.services import choose_ports  # noqa: PLC0415
        from deploy.local.supervisor import Supervisor  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise CommandError(
            f"{error.name} is not installed: `make dev` installs what the embedded stack needs"
        ) from error

    # Whatever the processes write is readable by its owner alone, whatever the directory's mode.
    os.umask(0o077)
    home = Path.cwd() / DEFAULT_DIR
    with ExitStack() as stack:
        # Locks this directory, where the commands look for the stack, and the data's.
        for directory in sorted({home.resolve(), data.resolve()}):
            stack.enter_context(locked(directory))
        directories = DataDir(data)
        directories.create()
        settings = Settings.from_env(os.environ)
        ports, lines = choose_ports(
            port, settings.http.metrics_port, settings.building.worker_metrics_port
        )
        console = standard_output()
        for line in lines:
            console.print(f"k9 dev: {line}", markup=False, highlight=False, soft_wrap=True)
        supervisor = Supervisor(
            directories, home / "stack.json", ports, dict(os.environ), console, empty=empty
        )
        asyncio.run(supervisor.run())
