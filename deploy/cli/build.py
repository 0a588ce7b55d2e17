"""`k9 build`."""

import asyncio
import contextlib
import os
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deploy.cli import environment
from deploy.errors import CommandError
from deploy.http import Api, ProblemError, open_api, path_of

_POLL_S = 0.3
_POLL_FAILURES_MAX = 20
_OPEN = {"queued", "running"}


@click.command("build")
@click.argument("model")
@click.option("--target-recall", type=float, default=0.95, show_default=True)
@click.option("--matrix-k", type=int, default=20, show_default=True)
@click.option("--force", is_flag=True, help="Builds even where nothing has changed.")
@click.option("--no-wait", is_flag=True, help="Prints the build's id and leaves.")
def command(model: str, target_recall: float, matrix_k: int, *, force: bool, no_wait: bool) -> None:
    """Builds and publishes the index and the similarity matrix of MODEL.

    Ctrl-C leaves the build running.
    """
    asyncio.run(_build(model, target_recall, matrix_k, force=force, wait=not no_wait))


async def _build(
    model: str, target_recall: float, matrix_k: int, *, force: bool, wait: bool
) -> None:
    settings, stack = environment.enter()
    url, token = await environment.api_access(settings, stack, os.environ)
    body = {"target_recall": target_recall, "matrix_k": matrix_k, "force": force}
    async with open_api(url, token) as api:
        build = await api.call("POST", path_of("models", model, "builds"), body=body)
        build_id = str(build["build_id"])
        if not wait:
            click.echo(build_id)
            return
        try:
            build = await _watch(api, build)
        except asyncio.CancelledError:
            click.echo(f"build {build_id} goes on without this command", err=True)
            raise
    if build["status"] != "published":
        raise CommandError(
            f"build {build_id} {build['status']}: {build.get('error') or 'no reason was given'}"
        )
    click.echo(_summary(build))


async def _watch(api: Api, build: dict[str, Any]) -> dict[str, Any]:
    """Polls until the build ends; a poll that fails is tried again."""
    console = Console(stderr=True)
    path = path_of("builds", build["build_id"])
    failures = 0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("queued", total=None)
        while True:
            step = build.get("progress") or {}
            words = step.get("stage") if build["status"] == "running" else build["status"]
            progress.update(
                bar,
                description=str(words),
                completed=step.get("done", 0),
                total=step.get("total") or None,
            )
            if build["status"] not in _OPEN:
                return build
            await asyncio.sleep(_POLL_S)
            try:
                build = await api.call("GET", path)
                failures = 0
            except CommandError as error:
                failures += 1
                refused = isinstance(error, ProblemError) and error.status < 500  # noqa: PLR2004
                if refused or failures >= _POLL_FAILURES_MAX:
                    raise


def _summary(build: dict[str, Any]) -> str:
    """What was published: `build … published: hnsw_flat, recall@10 0.9810, …`."""
    manifest = build.get("manifest") or {}
    words = []
    with contextlib.suppress(KeyError, TypeError, ValueError):  # of another K9's manifest
        recall, matrix = manifest["recall"], manifest["matrix"]
        words.append(f"{manifest['counts']['rows']:,} rows")
        words.append(f"index {manifest['index']['family']}")
        words.append(f"recall@{recall['at']} {recall['value']:.4f}")
        words.append(f"matrix of {matrix['k']} with recall {matrix['recall']:.4f}")
    return f"build {build['build_id']} published: {', '.join(words)}"
