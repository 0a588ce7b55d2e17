"""Follows a build that was requested over HTTP until it ends."""

import asyncio
from typing import Any

from deploy.api_client import Api, ProblemError, path_of
from deploy.errors import CommandError
from deploy.terminal import BuildDisplay, build_display

_POLL_S = 0.5
_FAILURES_MAX = 60
"""Failed polls in a row: half a minute without the API."""
_OPEN = {"queued", "running"}
_TOO_MANY, _SERVER_ERROR = 429, 500


async def watch(api: Api, build: dict[str, Any]) -> dict[str, Any]:
    """Polls a build, and shows its progress, until it has ended.

    Returns:
        The build in its final state, however it ended.

    Raises:
        CommandError: it cannot be watched any longer.
    """
    failures = 0
    with build_display() as display:
        while True:
            _show(display, build)
            if build["status"] not in _OPEN:
                return build
            await asyncio.sleep(_POLL_S)
            try:
                build = await api.call("GET", path_of("builds", build["build_id"]))
                failures = 0
            except CommandError as error:
                failures += 1
                if failures > _FAILURES_MAX or not _is_temporary(error):
                    raise CommandError(
                        f"build {build['build_id']} goes on, but cannot be watched: {error}"
                    ) from error


def _is_temporary(error: CommandError) -> bool:
    return (
        not isinstance(error, ProblemError)
        or error.status == _TOO_MANY
        or error.status >= _SERVER_ERROR
    )


def _show(display: BuildDisplay, build: dict[str, Any]) -> None:
    step = build.get("progress") or {}
    display.show(
        build["status"],
        str(step.get("stage")),
        step.get("done", 0),
        step.get("total", 0),
        attempt=build.get("attempt") or 0,
        error=build.get("error"),
    )


def check_published(build: dict[str, Any]) -> None:
    """Checks how a build ended.

    Raises:
        CommandError: it was not published; with the reason.
    """
    if build["status"] == "cancelled":
        raise CommandError(f"build {build['build_id']} was cancelled")
    if build["status"] != "published":
        reason = build.get("error") or "no reason was given"
        raise CommandError(f"build {build['build_id']} {build['status']}: {reason}")
