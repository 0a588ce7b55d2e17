"""Which environment the commands see: the process's, under that of the stack that runs here."""

import os
import re
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from urllib.parse import urlsplit

from core.errors import SettingsError
from core.settings import Settings
from deploy.errors import CommandError
from deploy.local.files import DEFAULT_DIR, OPERATOR, RunningStack, read_stack

SWITCH = "K9_STACK"
"""`off` leaves a running stack aside; a path names the data directory of another one."""
_OFF = {"off", "0", "no", "false"}
_NOT_OF_A_TOKEN = re.compile(r"[^A-Za-z0-9._~+/=-]")
"""By RFC 6750."""


def overlay(environ: MutableMapping[str, str], directory: Path) -> RunningStack | None:
    """Lays the environment of the stack that runs in `directory` over `environ`, in place.

    The stack wins over profiles and keys: writing to a real account by accident is the worse
    mistake. An explicit AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_* is no accident, and wins.

    Returns:
        The stack, or None where there is none to use.
    """
    switch = environ.get(SWITCH, "")
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

    Raises:
        SettingsError: one of the variables holds what is no address or no token.
    """
    url = environ.get("K9_URL") or f"http://127.0.0.1:{settings.http.port}"
    _check_url(url)
    token = environ.get("K9_TOKEN") or None
    if token is not None:
        _check_token(token)
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
        CommandError: when none runs here, or a variable leaves it aside; it says which.
    """
    if stack is not None:
        return stack
    switch = os.environ.get(SWITCH, "")
    if switch.lower() in _OFF:
        raise CommandError(f"{SWITCH}={switch} leaves the embedded stack aside: unset it")
    directory = Path(switch) if switch else Path.cwd() / DEFAULT_DIR
    overriding = _endpoints(os.environ)
    if overriding and read_stack(directory) is not None:
        names = ", ".join(overriding)
        unset = "".join(f" -u {name}" for name in overriding)
        raise CommandError(
            f"an embedded stack runs in {directory}, and {names} overrides it: unset that, as in "
            f"`env{unset} k9 …`"
        )
    where = f"in {directory} ({SWITCH})" if switch else "in this directory"
    raise CommandError(f"no embedded stack runs {where}: start it with `k9 dev`")


def _endpoints(environ: Mapping[str, str]) -> list[str]:
    return sorted(n for n, value in environ.items() if n.startswith("AWS_ENDPOINT_URL") and value)


def _check_url(url: str) -> None:
    """Raises: SettingsError: it is no address that a path can be put behind."""
    hint = "set it as in K9_URL=http://127.0.0.1:3001"
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no port
    except ValueError as error:
        raise SettingsError(f"K9_URL does not read ({error}): {hint}") from None
    if "@" in parts.netloc:  # which may be a password
        raise SettingsError(f"K9_URL holds a user or password, which are not used: {hint}")
    if not url.isprintable() or " " in url or parts.query or parts.fragment:
        raise SettingsError(f"K9_URL={url!r} holds what no base address has: {hint}")
    if "://" not in url:
        raise SettingsError(f"K9_URL={url!r} has no scheme: set it to http://{url.lstrip('/')}")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SettingsError(f"K9_URL={url!r} is no http or https address: {hint}")


def _check_token(token: str) -> None:
    """Raises: SettingsError: it cannot be sent. The token itself is not shown."""
    if token[:7].lower() == "bearer ":
        raise SettingsError("K9_TOKEN begins with 'Bearer': set it to the token alone")
    strange = _NOT_OF_A_TOKEN.search(token)
    if strange is None:
        return
    what = "a line break" if strange[0] in "\r\n" else "a character that no token has"
    raise SettingsError(
        f"K9_TOKEN has {what}, at position {strange.start() + 1} of {len(token)}: set it to the "
        "token alone, as in K9_TOKEN=$(k9 token)"
    )
