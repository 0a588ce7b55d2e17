"""Whether a deployed API answers: readiness, the reference, and 401 without a token."""

import asyncio
import ssl
from typing import Final
from urllib.parse import urlsplit

import aiohttp

from deploy.callbacks import MessageCallback
from deploy.errors import CommandError

_EXPECTED: Final = {"/health/ready": 200, "/openapi.json": 200, "/models": 401}
_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 3.0
_PROBLEM: Final = "application/problem+json"


async def check_api(
    url: str, load_balancer: str, message: MessageCallback, *, wait_s: float
) -> None:
    """Checks the API's answers, at the load balancer itself: the name's DNS record may be new.

    Args:
        url: As clients have it; of https, the certificate is checked against its name.
        load_balancer: The load balancer's own name, with a port where it is not the scheme's.
        message: Called with a line per answer that is right.
        wait_s: How long the first right answer may take, since targets are registered for a while.

    Raises:
        CommandError: an answer is not right; the last one is named.
    """
    parts = urlsplit(url)
    tls = ssl.create_default_context() if parts.scheme == "https" else True
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        for path, expected in _EXPECTED.items():
            while True:
                problem = await _problem(
                    session, f"{parts.scheme}://{load_balancer}{path}", parts.netloc, tls, expected
                )
                if problem is None:
                    message(f"GET {path}: {expected}, as it should be")
                    break
                if loop.time() > deadline:
                    raise CommandError(f"the API does not answer as it should: {path}: {problem}")
                await asyncio.sleep(_POLL_S)


async def _problem(
    session: aiohttp.ClientSession,
    address: str,
    host: str,
    tls: ssl.SSLContext | bool,  # noqa: FBT001 - aiohttp's own type
    expected: int,
) -> str | None:
    """What is wrong with one answer; None if it is right."""
    try:
        async with session.get(
            address,
            headers={"Host": host},
            ssl=tls,
            server_hostname=host.partition(":")[0] if isinstance(tls, ssl.SSLContext) else None,
            allow_redirects=False,
        ) as reply:
            if reply.status != expected:
                return f"{reply.status} in place of {expected}"
            if expected >= 400 and reply.content_type != _PROBLEM:  # noqa: PLR2004 - HTTP's own
                return f"a body of {reply.content_type} in place of {_PROBLEM}"
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return f"no answer: {type(error).__name__}: {error}"
    return None
