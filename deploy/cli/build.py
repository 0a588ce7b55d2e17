"""`k9 build`."""

import asyncio
import contextlib
from typing import Any

import click

from deploy.api_client import path_of
from deploy.cli import environment
from deploy.cli.watch_build import check_published, watch


@click.command("build")
@click.argument("model")
@click.option("--target-recall", type=float, default=0.95, show_default=True)
@click.option("--matrix-k", type=int, default=20, show_default=True)
@click.option("--deterministic", is_flag=True, help="Has no effect: every build is deterministic.")
@click.option(
    "--force",
    is_flag=True,
    help="Replaces the current build however little the two have in common, and reuses none of it.",
)
@click.option("--no-wait", is_flag=True, help="Prints the build's id without waiting for it.")
@environment.async_command
async def command(model: str, *, no_wait: bool, **parameters: Any) -> None:
    """Builds and publishes the index and the similarity matrix of MODEL.

    Ctrl-C leaves the build running.
    """
    async with environment.open_api() as api:
        build = await api.call("POST", path_of("models", model, "builds"), body=parameters)
        build_id = str(build["build_id"])
        if no_wait:
            click.echo(build_id)
            return
        try:
            build = await watch(api, build)
        except asyncio.CancelledError:
            click.echo(f"build {build_id} goes on without this command", err=True)
            raise
    check_published(build)
    click.echo(_summary(build))


def _summary(build: dict[str, Any]) -> str:
    """What was published: `build … published: hnsw_flat, recall@10 0.9810, …`."""
    manifest = build.get("manifest") or {}
    words = []
    with contextlib.suppress(KeyError, TypeError, ValueError):  # another release's manifest
        recall, matrix = manifest["recall"], manifest["matrix"]
        words.append(f"{manifest['counts']['rows']:,} rows")
        words.append(f"index {manifest['index']['family']}")
        words.append(f"recall@{recall['at']} {recall['value']:.4f}")
        if (zero := recall.get("zero")) and zero["queries"]:
            words.append(f"{zero['count']} of {zero['queries']:,} queries found no true neighbour")
        words.append(f"matrix of {matrix['k']} with recall {matrix['recall']:.4f}")
        if (changes := manifest.get("changes")) and changes["overlap"] is not None:
            words.append(f"overlap {changes['overlap']:.3f} with the previous build")
        if reused := manifest.get("reused_build_id"):
            words.append(f"only attributes changed: index and matrix of build {reused}")
    return f"build {build['build_id']} published: {', '.join(words)}"
