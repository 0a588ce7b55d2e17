"""What `compose.yaml` runs beside API and worker: `python -m deploy.container.stack PART`.

    aws, valkey    become the embedded AWS, or Valkey
    ready PART     is the health check of one of them
    setup          creates tables, bucket and user pool, and writes the settings for the others
    sample URL     loads and builds the sample catalogue once, and shows what to try at that address

The current directory is the data directory, as `.k9` is that of `k9 dev`. API, worker and commands
find the settings in the volume that K9_STACK names: `environment` for a shell, `stack.json` for
`k9`. Secrets are generated at first start, and are in these volumes alone.
"""

import asyncio
import inspect
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec

from core.errors import K9Error
from core.files import write_atomically
from core.settings import Settings
from deploy.cli import environment
from deploy.errors import CommandError
from deploy.local import services
from deploy.local.files import OPERATOR, DataDir, RunningStack

_ALL: Final = "0.0.0.0"  # noqa: S104 - of the container: compose.yaml publishes no port of these
_SAVE_S: Final = "10"
"""How much of what was written to the embedded AWS a SIGKILL may lose."""
_COMMAND: Final = "docker compose exec -T api k9"


def aws() -> None:
    """Becomes the embedded AWS."""
    data, ports = _data(), _ports()
    if data.tables_saved_at is None:  # a bucket without the tables of its stack is of no use
        for path in (data.state, data.objects):
            shutil.rmtree(path)
            path.mkdir()
    environ = {
        **services.base_environ(os.environ),
        **services.gateway_environ(data, ports.aws, data.secrets(), bind=_ALL),
        "GATEWAY_HOST": ports.aws_host,
        "GATEWAY_SAVE_S": _SAVE_S,
    }
    command = [sys.executable, "-m", services.GATEWAY]
    os.execve(command[0], command, environ)  # noqa: S606 - it needs no shell


def valkey() -> None:
    """Becomes Valkey."""
    data = _data()
    command = services.valkey_command(data, _ports().valkey, data.secrets(), bind=_ALL)
    os.execv(command[0], command)  # noqa: S606


async def ready(part: str) -> None:
    """Checks that `aws` or `valkey` answers in this container.

    Raises:
        CommandError: it does not.
    """
    if not await services.is_ready(part, _ports(), _data().secrets()):
        raise CommandError(f"{part} does not answer")


async def setup() -> None:
    """Creates what is missing in the embedded AWS, and writes the settings of this stack."""
    # Imported here: health checks run every few seconds, and need neither clients nor arrays.
    from deploy.aws.cognito import ensure_pool  # noqa: PLC0415
    from deploy.aws.data_stack import create_tables  # noqa: PLC0415

    ports, secrets = _ports(), _data().secrets()
    environ = services.aws_environ(ports, secrets)
    os.environ.update(environ)
    settings = Settings.from_env(environ)
    made, pool = await asyncio.gather(create_tables(settings), ensure_pool(settings))
    environ = services.stack_environ(ports, secrets, pool, made.bucket)
    running = RunningStack(
        pid=0,
        identity="",
        environ=environ,
        pool_id=pool.pool_id,
        client_id=pool.client_id,
        password=secrets.password,
    )
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in environ.items()]
    directory = Path(os.environ[environment.STACK_VARIABLE])
    write_atomically(directory / "stack.json", msgspec.json.encode(running))
    write_atomically(directory / "environment", "".join(lines).encode())
    _say(f"tables and bucket {made.change}")


async def sample(url: str) -> None:
    """Loads the sample catalogue and has it built, unless that is done, and shows its neighbours.

    `url` is where clients outside of the containers reach the API.
    """
    from deploy.local import sample as catalogue  # noqa: PLC0415
    from deploy.terminal import standard_output  # noqa: PLC0415

    settings, stack = environment.enter()
    running = environment.require_stack(stack)
    console = standard_output()
    published = await catalogue.prepare(settings, console, _say)
    token = await running.fetch_token(settings, OPERATOR, operator=True)
    await catalogue.show_neighbors(
        settings, console, _say, url=running.environ["K9_URL"], token=token, published=published
    )
    _say("\nReady. To try, elsewhere:\n")
    for line in catalogue.examples(_COMMAND, url, None):
        _say(f"  {line}")
    _say(f"\nThe API's reference is {url}/docs.")


def _ports() -> services.Ports:
    """The addresses in compose.yaml: the names of its services, and the usual ports."""
    return services.Ports(
        api=3001,
        metrics=3002,
        worker_metrics=3003,
        aws=services.AWS_PORT,
        valkey=services.VALKEY_PORT,
        api_host="api",
        aws_host="aws",
        valkey_host="valkey",
    )


def _data() -> DataDir:
    data = DataDir(Path())
    data.create()
    return data


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def main() -> int:
    """Runs the part that is named; 0, or 1 with a line that says why not."""
    parts: dict[str, Callable[..., Coroutine[Any, Any, None] | None]] = {
        "aws": aws,
        "valkey": valkey,
        "ready": ready,
        "setup": setup,
        "sample": sample,
    }
    name, *arguments = sys.argv[1:] or [""]
    if name not in parts:
        sys.stderr.write(f"name one of {', '.join(parts)}, not {name!r}\n")
        return 1
    try:
        inspect.signature(parts[name]).bind(*arguments)
    except TypeError as error:
        sys.stderr.write(f"{name} takes other arguments: {error}\n")
        return 1
    try:
        if (running := parts[name](*arguments)) is not None:
            asyncio.run(running)
    except (CommandError, K9Error) as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
