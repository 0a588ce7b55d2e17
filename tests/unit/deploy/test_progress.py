"""The display of a build: a line a stage, with rates; and the events that it is fed with."""

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from deploy.api_client import Api, ProblemError, open_api
from deploy.cli.progress import BuildDisplay, _Amount, _short
from deploy.errors import CommandError
from tests.scripted import ScriptedServer, answer


def state(
    status: str, stage: str = "queued", done: int = 0, total: int = 0, attempt: int = 1
) -> Any:
    """A build as the API answers it."""
    progress = {"stage": stage, "done": done, "total": total}
    return {"status": status, "progress": progress, "attempt": attempt, "error": None}


def shown(*states: Any) -> str:
    """What stands on the terminal after these states."""
    output = io.StringIO()
    console = Console(file=output, width=100, force_terminal=True, color_system=None)
    columns = (TextColumn("{task.description}"), _Amount())
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        display = BuildDisplay(progress)
        for each in states:
            display.show(each)
        progress.refresh()
    return " ".join(output.getvalue().split())


def test_each_stage_has_its_line() -> None:
    """Waiting, reading, uploading: rows in rows, bytes in bytes."""
    text = shown(
        state("queued"),
        state("running", "pull", 12_000),
        state("running", "upload", 1_500_000, 3_000_000),
        state("published"),
    )
    assert "waiting for a worker" in text
    assert "reading rows 12.0k" in text
    assert "uploading 3.0M/3.0MB" in text


def test_another_attempt_says_why() -> None:
    """A worker that was lost begins the stages anew."""
    text = shown(state("running", "index", 1, 2), state("running", "pull", 5, attempt=2))
    assert "attempt 2: its worker was lost" in text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (950, "950"), (12_345, "12.3k"), (4e6, "4.0M"), (5e16, "50000.0T")],
)
def test_numbers_are_short(number: float, text: str) -> None:
    """Three or four digits and a unit."""
    assert _short(number) == text


@asynccontextmanager
async def answering(status: int, body: bytes, **more: Any) -> AsyncIterator[Api]:
    """An API that gives one answer."""
    server = ScriptedServer(answer(status, body, **more))
    async with server.listening() as url, open_api(url, None) as api:
        yield api


async def test_events_are_decoded_and_comments_passed_over() -> None:
    """Data of one line and of several, until the stream ends."""
    body = b': hello\n\nevent: build\ndata: {"a": 1}\n\ndata: {"b":\ndata: 2}\n\n'
    async with answering(200, body) as api:
        assert [event async for event in api.events("/x")] == [{"a": 1}, {"b": 2}]


async def test_events_that_cannot_be_had_say_so() -> None:
    """A problem keeps its status; a stream that breaks off, or is no JSON, is a failure."""
    async with answering(503, b'{"title": "busy"}') as api:
        with pytest.raises(ProblemError) as raised:
            [event async for event in api.events("/x")]
        assert raised.value.status == 503
    async with answering(200, b'data: {"a": 1}\n\n', length=100) as api:
        with pytest.raises(CommandError, match="broke off"):
            [event async for event in api.events("/x")]
    async with answering(200, b"data: nonsense\n\n") as api:
        with pytest.raises(CommandError, match="broke off"):
            [event async for event in api.events("/x")]
