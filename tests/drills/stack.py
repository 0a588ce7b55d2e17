"""The embedded stack with the sample catalogue, for a drill, and comparisons of its data."""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

from core.resources import Resources, open_resources
from core.settings import Settings
from deploy.api_client import ProblemError, open_api, path_of
from deploy.local.files import OPERATOR, RunningStack, read_stack
from tests.e2e.dev import Dev, run_in, running_dev
from tests.e2e.tables import EXEMPT, Contents

MODEL = "minilm-l6-v2"
_READY = r"Ready in|ready in"
_INDEX_S = 120.0


class DrillFailed(Exception):
    """The drill did not end as it should; the message says where."""


class Stack(msgspec.Struct, frozen=True):
    """A running embedded stack."""

    dev: Dev
    running: RunningStack
    settings: Settings
    resources: Resources

    async def k9(self, *arguments: str) -> str:
        """What a command printed; it is shown with its time.

        Raises:
            DrillFailed: it failed.
        """
        began = perf_counter()
        status, out, error = await run_in(self.dev.directory, *arguments)
        say(f"k9 {' '.join(arguments)}: {perf_counter() - began:.1f} s")
        if status:
            raise DrillFailed(f"k9 {arguments[0]} ended with {status}: {error}{out}")
        return out

    async def neighbors(self, product_id: str, not_of: str | None = None) -> dict[str, Any]:
        """Neighbours of a product, once an index answers that is of another build than `not_of`."""
        token = await self.running.fetch_token(self.settings, OPERATOR, operator=True)
        async with (
            asyncio.timeout(_INDEX_S),
            open_api(self.running.environ["K9_URL"], token) as api,
        ):
            while True:
                try:
                    path = path_of("models", MODEL, "products", product_id, "neighbors")
                    answer: dict[str, Any] = await api.call("GET", path)
                except ProblemError as error:
                    if error.status not in {404, 409, 503}:
                        raise
                else:
                    if answer["index"]["build_id"] != not_of:
                        return answer
                await asyncio.sleep(0.2)


@asynccontextmanager
async def running_stack() -> AsyncIterator[Stack]:
    """`k9 dev` with the sample in a directory of its own, stopped and removed at the end."""
    began = perf_counter()
    with tempfile.TemporaryDirectory(prefix="k9-drill-") as directory:
        async with running_dev(Path(directory)) as dev:
            await dev.until(_READY)
            running = read_stack(Path(directory) / ".k9")
            if running is None:
                raise DrillFailed("the stack's file is not there")
            # This process's clients need its credentials. Its address would make the commands
            # ignore the stack of their directory.
            aws = {name: v for name, v in running.environ.items() if name.startswith("AWS_")}
            del aws["AWS_ENDPOINT_URL"]
            os.environ.update(aws)
            settings = Settings.from_env(running.environ)
            async with open_resources(settings.patient()) as resources:
                say(f"embedded stack with the sample catalogue: {perf_counter() - began:.1f} s")
                yield Stack(dev, running, settings, resources)


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)


def compare(before: Contents, after: Contents) -> None:
    """Compares all rows byte for byte, but for what every restore changes on purpose.

    Raises:
        DrillFailed: they differ; the table is named.
    """
    for table, rows in before.items():
        if table in EXEMPT:
            lost = rows.keys() - after[table].keys()
            if lost:
                raise DrillFailed(f"{table}: {len(lost)} rows are gone")
        elif after[table] != rows:
            raise DrillFailed(
                f"{table}: is not as before ({len(rows)} and {len(after[table])} rows)"
            )
    total = sum(len(rows) for table, rows in before.items() if table not in EXEMPT)
    say(f"equal data: {total:,} rows are as before, byte for byte")


def same_neighbors(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Compares two answers; the index may be another.

    Raises:
        DrillFailed: they differ.
    """
    if before["neighbors"] != after["neighbors"]:
        raise DrillFailed(f"other neighbours than before: {json.dumps(after['neighbors'])}")
    say(f"the same {len(after['neighbors'])} neighbours, from build {after['index']['build_id']}")


def run(drill: Callable[[], Awaitable[None]]) -> None:
    """Runs a drill; ends the process with status 1 if it failed."""
    began = perf_counter()
    try:
        asyncio.run(_awaited(drill))
    except DrillFailed as error:
        say(f"FAILED: {error}")
        sys.exit(1)
    say(f"done after {perf_counter() - began:.1f} s")


async def _awaited(drill: Callable[[], Awaitable[None]]) -> None:
    await drill()
