"""The sample catalogue: loaded once, built once, and shown."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from core.errors import ModelBeingDeleted, NotFound
from core.models import Build, BuildParameters
from core.settings import Settings
from deploy.api_client import ProblemError, open_api, path_of
from deploy.aws.tables import read_mark, write_mark
from deploy.errors import CommandError

CATALOGUE = Path(__file__).with_name("catalogue-5k.parquet")
MODEL = "minilm-l6-v2"
PRODUCT = "pandas"
NEIGHBORS = 8
_MARK = "k9:sample"
"""A tag of the embeddings table, so that it shares the fate of the rows that it speaks of."""
_POLL_S = 0.2
_BUILD_WAIT_S = 300.0
_ANSWER_WAIT_S = 30.0


async def is_loaded(settings: Settings) -> bool:
    """Whether the sample was once loaded whole into the tables as they are now.

    Not asked of the rows: someone who deleted some of them does not want them back.
    """
    return await read_mark(settings, "embeddings", _MARK) is not None


async def load(settings: Settings, console: Console) -> int:
    """Stores the sample's embeddings, with a progress bar; how many.

    Raises:
        CommandError: when a row of it does not hold.
    """
    # numpy, pyarrow and the rest take a second to load, which a start with the data there saves.
    from core.resources import open_resources  # noqa: PLC0415
    from deploy.data.formats.readers import open_source  # noqa: PLC0415
    from deploy.data.importing import Moved, import_file  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        open_source(CATALOGUE) as source,
        Progress(
            *columns,
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ) as progress,
    ):
        bar = progress.add_task("loading the sample", total=source.units)

        def moved(step: Moved) -> None:
            progress.advance(bar, step.units)

        async with open_resources(settings.patient()) as resources:
            result = await import_file(
                resources.embedding_service,
                MODEL,
                source,
                rows_max=settings.limits.batch_rows_max,
                moved=moved,
            )
    if result.bad:
        raise CommandError(f"{result.bad} rows of the sample do not hold: {CATALOGUE} is damaged")
    await write_mark(settings, "embeddings", _MARK, str(result.stored))
    return result.stored


async def build(settings: Settings, stage: Callable[[str], None]) -> Build | None:
    """The build that ends as the model's current one; None where there is one already.

    Joins a build that is open. `stage` is told how far it is.

    Raises:
        CommandError: when it takes too long.
    """
    from core.resources import open_resources  # noqa: PLC0415

    async with open_resources(settings.patient()) as resources:
        try:
            model = await resources.models.get_model(MODEL)
        except (ModelBeingDeleted, NotFound):
            return None  # someone else's data is here, without the sample
        if model.current_build_id is not None and model.open_build_id is None:
            return None
        if model.open_build_id is not None:
            build_id = model.open_build_id
        else:
            requested = await resources.build_service.request(MODEL, BuildParameters())
            build_id = requested.build_id
        deadline = monotonic() + _BUILD_WAIT_S
        while monotonic() < deadline:
            current = await resources.builds.get_build(build_id)
            if current.status not in {"queued", "running"}:
                return current
            step = current.progress
            stage(f"building: {step.stage}" + (f" {step.done}/{step.total}" if step.total else ""))
            await asyncio.sleep(_POLL_S)
    raise CommandError(f"build {build_id} is not done after {_BUILD_WAIT_S:.0f} s")


async def neighbors(url: str, token: str, *, published: bool) -> dict[str, Any] | None:
    """The API's answer for the product shown, once it has loaded the index.

    None where there is no index, unless one is known to be `published` and so must appear.

    Raises:
        CommandError: when it does not answer in time.
    """
    deadline = monotonic() + _ANSWER_WAIT_S
    path = path_of("models", MODEL, "products", PRODUCT, "neighbors")
    async with open_api(url, token) as api:
        while True:
            try:
                answer: dict[str, Any] = await api.call("GET", path, query={"k": NEIGHBORS})
            except ProblemError as error:
                if error.kind == "no-index" and not published:
                    return None
                # Published and not seen by the API yet, or being loaded.
                if error.status not in {404, 409, 503} or monotonic() > deadline:
                    raise
            else:
                return answer
            await asyncio.sleep(_POLL_S)
