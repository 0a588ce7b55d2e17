"""The sample catalogue: loaded once, built once, and shown."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console

from core.dynamo import tables
from core.errors import ModelBeingDeleted, NotFound
from core.models import Build, BuildParameters
from core.settings import Settings
from deploy.api_client import ProblemError, open_api, path_of
from deploy.aws.tables import read_tag, write_tag
from deploy.callbacks import MessageCallback
from deploy.errors import CommandError
from deploy.terminal import build_display, index_line, neighbor_table, progress_display

CATALOGUE = Path(__file__).with_name("catalogue-5k.parquet")
MODEL = "minilm-l6-v2"
PRODUCT = "pandas"
NEIGHBORS = 8
_TAG = "k9:sample"
"""A tag of the embeddings table, so that it is lost together with the rows."""
_POLL_S = 0.2
_BUILD_TIMEOUT_S = 300.0
_ANSWER_TIMEOUT_S = 30.0


async def prepare(settings: Settings, console: Console, message: MessageCallback) -> bool:
    """Loads and builds the sample, unless it is loaded. Returns whether an index was published."""
    # The rows are not checked: whoever deleted some of them does not want them back.
    if await read_tag(settings, tables.EMBEDDINGS, _TAG) is not None:
        return False
    stored = await load(settings, console)
    message(f"sample loaded: {stored:,} embeddings of {MODEL}")
    return await publish(settings, console, message)


async def publish(settings: Settings, console: Console, message: MessageCallback) -> bool:
    """Builds the sample's index, unless there is one. Returns whether there is one then."""
    built = await build(settings, console)
    if built is None:
        return True
    message(
        f"build {built.build_id} {built.status}{': ' if built.error else ''}{built.error or ''}"
    )
    return built.status == "published"


def examples(k9: str, url: str, token: str | None) -> Iterator[str]:
    """Commands to try; `k9` is how to call that command.

    The token is shown where it is given: not where the lines are kept in a log.
    """
    model = f"{url}/models/{MODEL}"
    yield f"{k9} neighbors {MODEL} {PRODUCT}"
    if token is not None:
        neighbors = f"{model}/products/{PRODUCT}/neighbors?k=5"
        yield f"curl -s '{neighbors}' -H 'Authorization: Bearer {token}'"
    yield f"TOKEN=$({k9} token --operator)"
    yield (
        f'curl -s {model}/search -H "Authorization: Bearer $TOKEN"'
        ' -H \'Content-Type: application/json\' -d \'{"product_id": "numpy", "k": 5}\''
    )


async def load(settings: Settings, console: Console) -> int:
    """Stores the sample's embeddings, with a progress bar; returns how many.

    Raises:
        CommandError: a row of it is not valid.
    """
    # Imported here: numpy, pyarrow and the clients take a second to load, which a start that has
    # the data already saves.
    from core.embedding_files.importing import BatchResult, import_file  # noqa: PLC0415
    from core.embedding_files.readers import open_embeddings  # noqa: PLC0415
    from core.resources import open_resources  # noqa: PLC0415

    read = 0
    with open_embeddings(CATALOGUE) as reader, progress_display(console) as display:

        def on_batch(batch: BatchResult) -> None:
            nonlocal read
            read += batch.units
            display.update("loading the sample", read, reader.units)

        async with open_resources(settings.patient()) as resources:
            result = await import_file(
                resources.embedding_service, MODEL, reader, on_batch=on_batch
            )
    if result.bad:
        raise CommandError(f"{result.bad} rows of the sample are not valid: {CATALOGUE} is damaged")
    await write_tag(settings, tables.EMBEDDINGS, _TAG, str(result.stored))
    return result.stored


async def build(settings: Settings, console: Console) -> Build | None:
    """The model's build, once it has ended; None if there is a current one already.

    Waits for a build that is open.

    Raises:
        CommandError: it takes too long.
    """
    from core.resources import open_resources  # noqa: PLC0415 - as above
    from deploy.data.builds import wait_for_build  # noqa: PLC0415

    async with open_resources(settings.patient()) as resources:
        try:
            model = await resources.models.get_model(MODEL)
        except (ModelBeingDeleted, NotFound):
            return None  # the tables have other data, without the sample
        build_id = model.open_build_id
        if build_id is None:
            if model.current_build_id is not None:
                return None
            requested = await resources.build_service.request(MODEL, BuildParameters())
            build_id = requested.build_id
        try:
            with build_display(console) as display:
                async with asyncio.timeout(_BUILD_TIMEOUT_S):
                    return await wait_for_build(resources, build_id, display)
        except TimeoutError:
            limit = f"{_BUILD_TIMEOUT_S:.0f} s"
            raise CommandError(f"build {build_id} has not ended after {limit}") from None


async def show_neighbors(
    settings: Settings,
    console: Console,
    message: MessageCallback,
    *,
    url: str,
    token: str,
    published: bool,
) -> None:
    """Shows the neighbours of the sample's product, as the API answers.

    An index that is missing although none was to be built, as after a loss of data, is built first.

    Raises:
        CommandError: the API does not answer in time, or the build failed.
    """
    answer = await neighbors(url, token, published=published)
    if answer is None:
        await publish(settings, console, message)
        answer = await neighbors(url, token, published=True)
    found = answer or {"neighbors": (), "index": {}}
    console.print(f"\nNeighbours of {PRODUCT}:\n", markup=False, highlight=False)
    console.print(neighbor_table(found))
    console.print(f"\n{index_line(found['index'])}", markup=False, highlight=False, soft_wrap=True)


async def neighbors(url: str, token: str, *, published: bool) -> dict[str, Any] | None:
    """The API's answer for the sample's product, once it has loaded the index.

    None if there is no index and none is known to be `published`.

    Raises:
        CommandError: it does not answer in time.
    """
    deadline = monotonic() + _ANSWER_TIMEOUT_S
    path = path_of("models", MODEL, "products", PRODUCT, "neighbors")
    async with open_api(url, token) as api:
        while True:
            try:
                answer: dict[str, Any] = await api.call("GET", path, query={"k": NEIGHBORS})
            except ProblemError as error:
                if error.kind == "no-index" and not published:
                    return None
                # The API has yet to see the published build, or to load it.
                if error.status not in {404, 409, 503} or monotonic() > deadline:
                    raise
            else:
                return answer
            await asyncio.sleep(_POLL_S)
