"""What every command starts with: its settings, and clients of the tables and of the API.

The settings are those of the process's environment, overridden by the embedded stack that runs in
the current directory.
"""

import asyncio
import functools
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

import click

from core.errors import SettingsError
from core.settings import Settings
from deploy.errors import CommandError
from deploy.local.files import DEFAULT_DIR, OPERATOR, RunningStack, read_stack

if TYPE_CHECKING:  # loaded by the commands that need them: each takes a third of a second or more
    from core.resources import Resources
    from deploy.api_client import Api

P = ParamSpec("P")
R = TypeVar("R")

say = functools.partial(click.echo, err=True)
"""Prints a line on standard error: standard output is for a command's result."""

STACK_VARIABLE = "K9_STACK"
"""`off` ignores a running stack; a path names the data directory of another one."""
_OFF = {"off", "0", "no", "false"}
_INVALID_IN_TOKEN = re.compile(r"[^A-Za-z0-9._~+/=-]")
"""By RFC 6750."""


def async_command(function: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, R]:
    """Makes a coroutine function a function that click can call."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return asyncio.run(function(*args, **kwargs))

    return run


def overlay(environ: MutableMapping[str, str], directory: Path) -> RunningStack | None:
    """Updates `environ` in place with the settings of the stack that runs in `directory`.

    The stack takes precedence over profiles and keys, since writing to a real account by accident
    is the worse mistake. An explicit AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_* is deliberate, and
    takes precedence over the stack.

    Returns:
        The stack; None where there is none to use.
    """
    switch = environ.get(STACK_VARIABLE, "")
    if switch.lower() in _OFF or _endpoints(environ):
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
    """The settings of a command, with the stack's credentials in `os.environ` for botocore.

    Raises:
        SettingsError: a variable is not valid; it is named.
        CommandError: AWS's configuration file cannot be read, or has no such profile.
    """
    stack = overlay(os.environ, Path.cwd())
    if stack is not None and sys.stderr.isatty():  # for people: scripts expect one line at most
        where = stack.environ["AWS_ENDPOINT_URL"]
        sys.stderr.write(f"\033[2musing the embedded stack of this directory ({where})\033[0m\n")
    if not os.environ.get("AWS_REGION") and not os.environ.get("AWS_DEFAULT_REGION"):
        region = _region_of_profile(os.environ)
        if region:
            os.environ["AWS_REGION"] = region
    return Settings.from_env(os.environ), stack


def _region_of_profile(environ: Mapping[str, str]) -> str | None:
    """The region of the chosen profile in AWS's configuration file; None where it has none."""
    path = Path(environ.get("AWS_CONFIG_FILE") or "~/.aws/config").expanduser()
    if not path.is_file():
        return None
    from deploy.aws import profile  # noqa: PLC0415 - see above

    return profile.read_region()


def quiet_logs() -> None:
    """Logs errors alone, on standard error: standard output is for what a command prints."""
    from core import telemetry  # noqa: PLC0415 - see above

    telemetry.configure_logging(level="error", json=False)


@asynccontextmanager
async def open_resources(settings: Settings) -> "AsyncIterator[Resources]":
    """Clients of the tables, the bucket and the queue, with patient retries and quiet logs.

    Raises:
        NewerFormat: a later release has changed the tables.
        Unavailable: the table of model versions does not answer, or is not there.
    """
    from core import resources  # noqa: PLC0415 - see above

    quiet_logs()
    async with resources.open_resources(settings.patient()) as opened:
        await opened.models.check_tables()
        yield opened


@asynccontextmanager
async def open_api() -> "AsyncIterator[Api]":
    """A client of K9's HTTP API.

    Raises:
        SettingsError: a variable is not valid; it is named.
    """
    from deploy import api_client  # noqa: PLC0415 - see above

    settings, stack = enter()
    url, token = await api_access(settings, stack, os.environ)
    async with api_client.open_api(url, token) as api:
        yield api


async def api_access(
    settings: Settings, stack: RunningStack | None, environ: Mapping[str, str]
) -> tuple[str, str | None]:
    """The API's address and an access token: K9_URL and K9_TOKEN, else those of the stack.

    The stack's token is sent to the stack's own address alone.

    Raises:
        SettingsError: one of the variables is not an address or not a token.
    """
    url = environ.get("K9_URL") or f"http://127.0.0.1:{settings.http.port}"
    _check_url(url)
    token = environ.get("K9_TOKEN") or None
    if token is not None:
        _check_token(token)
    if token is None and stack is not None and url.rstrip("/") == stack.environ["K9_URL"]:
        token = await stack.fetch_token(settings, OPERATOR, operator=True)
    return url, token


def require_stack(stack: RunningStack | None) -> RunningStack:
    """The stack.

    Raises:
        CommandError: none runs here, or a variable, which it names, makes the command ignore it.
    """
    if stack is not None:
        return stack
    switch = os.environ.get(STACK_VARIABLE, "")
    if switch.lower() in _OFF:
        raise CommandError(
            f"{STACK_VARIABLE}={switch} makes k9 ignore the embedded stack: unset it"
        )
    directory = Path(switch) if switch else Path.cwd() / DEFAULT_DIR
    overriding = _endpoints(os.environ)
    if overriding and read_stack(directory) is not None:
        names = ", ".join(overriding)
        unset = "".join(f" -u {name}" for name in overriding)
        raise CommandError(
            f"an embedded stack runs in {directory}, but {names} overrides it: unset that, as in "
            f"`env{unset} k9 …`"
        )
    where = f"in {directory} ({STACK_VARIABLE})" if switch else "in this directory"
    raise CommandError(f"no embedded stack runs {where}: start it with `k9 dev`")


def _endpoints(environ: Mapping[str, str]) -> list[str]:
    return sorted(n for n, value in environ.items() if n.startswith("AWS_ENDPOINT_URL") and value)


def _check_url(url: str) -> None:
    """Raises: SettingsError: it is not the base address of an API."""
    hint = "set it as in K9_URL=http://127.0.0.1:3001"
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is not a port
    except ValueError as error:
        raise SettingsError(f"K9_URL is not a valid URL ({error}): {hint}") from None
    if "@" in parts.netloc:  # not shown: it may be a password
        raise SettingsError(f"K9_URL has a user or password, which K9 does not use: {hint}")
    if not url.isprintable() or " " in url or parts.query or parts.fragment:
        raise SettingsError(f"K9_URL={url!r} is not a base address: {hint}")
    if "://" not in url:
        raise SettingsError(f"K9_URL={url!r} has no scheme: set it to http://{url.lstrip('/')}")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SettingsError(f"K9_URL={url!r} is not an http or https address: {hint}")


def _check_token(token: str) -> None:
    """Raises: SettingsError: it cannot be sent. The token itself is not shown."""
    if token[:7].lower() == "bearer ":
        raise SettingsError("K9_TOKEN begins with 'Bearer': set it to the token alone")
    invalid = _INVALID_IN_TOKEN.search(token)
    if invalid is None:
        return
    what = "a line break" if invalid[0] in "\r\n" else "a character that tokens cannot have"
    raise SettingsError(
        f"K9_TOKEN has {what}, at position {invalid.start() + 1} of {len(token)}: set it to the "
        "token alone, as in K9_TOKEN=$(k9 token)"
    )
