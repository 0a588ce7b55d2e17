"""`k9 build`."""

import asyncio
import contextlib
import os
from typing import Any

import click

from deploy.api_client import open_api, path_of
from deploy.cli import environment
from deploy.cli.watch_build import must_be_published, watch


@click.command("build")
@click.argument("model")
@click.option("--target-recall", type=float, default=0.95, show_default=True)
@click.option("--matrix-k", type=int, default=20, show_default=True)
@click.option(
    "--deterministic", is_flag=True, help="The same bytes for the same rows, on one thread."
)
@click.option(
    "--force",
    is_flag=True,
    help="Replaces the current build however little the two have in common.",
)
@click.option("--no-wait", is_flag=True, help="Prints the build's id and leaves.")
def command(
    model: str,
    target_recall: float,
    matrix_k: int,
    *,
    deterministic: bool,
    force: bool,
    no_wait: bool,
) -> None:
    """Builds and publishes the index and the similarity matrix of MODEL.

    Ctrl-C leaves the build running.
    """
    body = {
        "target_recall": target_recall,
        "matrix_k": matrix_k,
        "deterministic": deterministic,
        "force": force,
    }
    asyncio.run(_build(model, body, wait=not no_wait))


async def _build(model: str, body: dict[str, Any], *, wait: bool) -> None:
    settings, stack = environment.enter()
    url, token = await environment.api_access(settings, stack, os.environ)
    async with open_api(url, token) as api:
        build = await api.call("POST", path_of("models", model, "builds"), body=body)
        build_id = str(build["build_id"])
        if not wait:
            click.echo(build_id)
            return
        try:
            build = await watch(api, build)
        except asyncio.CancelledError:
            click.echo(f"build {build_id} goes on without this command", err=True)
            raise
    must_be_published(build)
    click.echo(_summary(build))


def _summary(build: dict[str, Any]) -> str:
    """What was published: `build … published: hnsw_flat, recall@10 0.9810, …`."""
    manifest = build.get("manifest") or {}
    words = []
    with contextlib.suppress(KeyError, TypeError, ValueError):  # of another K9's manifest
        recall, matrix = manifest["recall"], manifest["matrix"]
        words.append(f"{manifest['counts']['rows']:,} rows")
        words.append(f"index {manifest['index']['family']}")
        words.append(f"recall@{recall['at']} {recall['value']:.4f}")
        if (zero := recall.get("zero")) and zero["queries"]:
            words.append(f"{zero['count']} of {zero['queries']:,} queries found nothing right")
        words.append(f"matrix of {matrix['k']} with recall {matrix['recall']:.4f}")
        if (changes := manifest.get("changes")) and changes["overlap"] is not None:
            words.append(f"overlap {changes['overlap']:.3f} with the build before it")
    return f"build {build['build_id']} published: {', '.join(words)}"
