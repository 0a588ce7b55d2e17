"""A build that was requested over HTTP, to its end."""

import asyncio
from typing import Any

from deploy.api_client import Api, ProblemError, path_of
from deploy.cli.progress import build_display
from deploy.errors import CommandError

_POLL_S = 0.5
_POLLS = 10
"""Times that the build is asked for before its events are tried again."""
_FAILURES_MAX = 20
_OPEN = {"queued", "running"}


async def watch(api: Api, build: dict[str, Any]) -> dict[str, Any]:
    """Follows the build's events until it ends; asks now and then where they cannot be had.

    Returns:
        The build as it is then, however it ended.

    Raises:
        CommandError: it cannot be watched any more.
    """
    path = path_of("builds", build["build_id"])
    failures = 0
    with build_display() as display:
        while True:
            try:
                async for event in api.events(f"{path}/events"):
                    build, failures = event, 0
                    display.show(build)
            except CommandError:
                failures += 1  # the build itself tells whether it is worth going on
            for _ in range(_POLLS if build["status"] in _OPEN else 0):
                try:
                    build = await api.call("GET", path)
                except CommandError as error:
                    refused = isinstance(error, ProblemError) and error.status < 500  # noqa: PLR2004
                    if refused or failures >= _FAILURES_MAX:
                        raise CommandError(
                            f"build {build['build_id']} goes on, but cannot be watched: {error}"
                        ) from error
                    failures += 1
                display.show(build)
                if build["status"] not in _OPEN:
                    break
                await asyncio.sleep(_POLL_S)
            if build["status"] not in _OPEN:
                return build


def must_be_published(build: dict[str, Any]) -> None:
    """Checks how a build ended.

    Raises:
        CommandError: it was not published; with its reason.
    """
    if build["status"] == "cancelled":
        raise CommandError(f"build {build['build_id']} was cancelled")
    if build["status"] != "published":
        reason = build.get("error") or "no reason was given"
        raise CommandError(f"build {build['build_id']} {build['status']}: {reason}")
