"""A client of K9's HTTP API for the commands. Problem details become one line."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
from yarl import URL

from deploy.errors import CommandError

_FIELDS_SHOWN = 3
_TIMEOUT = aiohttp.ClientTimeout(total=30, connect=5)


class ProblemError(CommandError):
    """The API answered with problem details."""

    def __init__(self, status: int, line: str, kind: str) -> None:
        super().__init__(line)
        self.status = status
        self.kind = kind
        """The last part of the problem's type: `no-index`."""


def path_of(*segments: str) -> str:
    """A path of segments, each percent-encoded, a slash in a product id too."""
    return "".join(f"/{quote(segment, safe='')}" for segment in segments)


class Api:
    """A session with the API at one address."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session = session
        self._base = base

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, int | str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Any:
        """The decoded answer. `path` is percent-encoded already.

        Raises:
            ProblemError: the answer is not a success.
            CommandError: there is no answer.
        """
        text = urlencode(query or {})
        url = URL(f"{self._base}{path}{'?' if text else ''}{text}", encoded=True)
        try:
            async with self._session.request(
                method,
                url,
                data=None if body is None else msgspec.json.encode(body),
                headers={} if body is None else {"Content-Type": "application/json"},
                allow_redirects=False,
            ) as reply:
                data = await reply.read()
        except TimeoutError as error:
            raise CommandError(f"{self._base} did not answer in time") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise CommandError(
                f"{self._base} does not answer ({error}): is `k9 dev` running, or K9_URL right?"
            ) from error
        if not reply.ok:
            raise _problem(reply.status, data)
        try:
            return msgspec.json.decode(data)
        except msgspec.DecodeError as error:
            raise CommandError(f"{self._base} did not answer with JSON: is it K9's API?") from error


@asynccontextmanager
async def open_api(url: str, token: str | None) -> AsyncIterator[Api]:
    """A session with the API at `url`."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with aiohttp.ClientSession(timeout=_TIMEOUT, headers=headers) as session:
        yield Api(session, url.rstrip("/"))


def _problem(status: int, data: bytes) -> ProblemError:
    try:
        body = msgspec.json.decode(data)
    except msgspec.DecodeError:
        body = None
    if not isinstance(body, dict):
        return ProblemError(status, f"HTTP {status}", "")
    title = str(body.get("title") or f"HTTP {status}")
    detail = str(body.get("detail") or "")
    fields = [
        f"{entry.get('field')}: {entry.get('message')}"
        for entry in body.get("errors") or ()
        if isinstance(entry, dict) and str(entry.get("message")) not in detail
    ]
    more = f"and {len(fields) - _FIELDS_SHOWN} more" if len(fields) > _FIELDS_SHOWN else ""
    words = [title, detail, *fields[:_FIELDS_SHOWN], more]
    line = " ".join("; ".join(filter(None, words)).split())
    if status == 401:  # noqa: PLR2004
        line += " (set K9_TOKEN, or run it where `k9 dev` runs)"
    return ProblemError(status, f"{line} (HTTP {status})", str(body.get("type")).split("/")[-1])
