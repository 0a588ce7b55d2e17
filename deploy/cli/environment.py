"""Which environment the commands see: the process's, under that of the stack that runs here."""

import os
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from core.settings import Settings
from deploy.errors import CommandError
from deploy.local.files import DEFAULT_DIR, OPERATOR, RunningStack, read_stack

SWITCH = "K9_STACK"
"""`off` leaves a running stack aside; a path names the data directory of another one."""


def overlay(environ: MutableMapping[str, str], directory: Path) -> RunningStack | None:
    """Lays the environment of the stack that runs in `directory` over `environ`, in place.

    The stack wins over profiles and keys: writing to a real account by accident is the worse
    mistake. An explicit AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_* is no accident, and wins.

    Returns:
        The stack, or None where there is none to use.
    """
    switch = environ.get(SWITCH, "")
    if switch.lower() in {"off", "0", "no", "false"}:
        return None
    if any(name.startswith("AWS_ENDPOINT_URL") and value for name, value in environ.items()):
        return None
    stack = read_stack(Path(switch) if switch else directory / DEFAULT_DIR)
    if stack is None:
        return None
    for name in [name for name in environ if name.startswith(("AWS_", "DYNAMODB_"))]:
        del environ[name]
    url = environ.get("K9_URL")
    environ.update(stack.environ)
    if url:
        environ["K9_URL"] = url
    return stack


def enter() -> tuple[Settings, RunningStack | None]:
    """Settings of a command, with the stack's credentials where botocore looks for them.

    Raises:
        SettingsError: naming a variable that does not hold.
    """
    stack = overlay(os.environ, Path.cwd())
    if stack is not None and sys.stderr.isatty():  # for people: a script wants a failure's one line
        where = stack.environ["AWS_ENDPOINT_URL"]
        sys.stderr.write(f"\033[2musing the embedded stack of this directory ({where})\033[0m\n")
    return Settings.from_env(os.environ), stack


def quiet_logs() -> None:
    """Logs errors alone, on standard error: standard output has what a command was asked for.

    Not all commands need it, and it takes a third of a second to load.
    """
    from core import telemetry  # noqa: PLC0415

    telemetry.configure_logging(level="error", json=False)


async def api_access(
    settings: Settings, stack: RunningStack | None, environ: Mapping[str, str]
) -> tuple[str, str | None]:
    """Address and token for HTTP: K9_URL and K9_TOKEN, else those of the stack.

    The stack's token goes to the stack's own address alone.
    """
    url = environ.get("K9_URL") or f"http://127.0.0.1:{settings.http.port}"
    token = environ.get("K9_TOKEN") or None
    if token is None and stack is not None and url.rstrip("/") == stack.environ["K9_URL"]:
        token = await token_of(stack, settings, OPERATOR, operator=True)
    return url, token


async def token_of(stack: RunningStack, settings: Settings, user: str, *, operator: bool) -> str:
    """An access token of the stack's user pool."""
    from deploy.aws.cognito import fetch_token  # noqa: PLC0415 - brings aioboto3 along

    return await fetch_token(
        settings,
        pool_id=stack.pool_id,
        client_id=stack.client_id,
        user=user,
        password=stack.password,
        operator=operator,
    )


def need(stack: RunningStack | None) -> RunningStack:
    """The stack.

    Raises:
        CommandError: when none runs here.
    """
    if stack is None:
        raise CommandError("no embedded stack runs in this directory: start it with `k9 dev`")
    return stack
