"""Log lines: no locals, no arguments, and none without an end."""

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import pytest
import structlog

from core import telemetry

SECRET = "local-of-a-frame-7f3a"


@contextmanager
def written(*, json: bool) -> Iterator[io.StringIO]:
    """What is logged within the block, as a process logs it; the configuration is restored."""
    root = logging.getLogger()
    before, handlers, level = structlog.get_config(), root.handlers[:], root.level
    out = io.StringIO()
    try:
        with redirect_stderr(out):
            telemetry.configure_logging(level="debug", json=json)
        yield out
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.configure(**before)


def fail(depth: int = 3) -> None:
    """Raises, with a secret among the locals of each frame."""
    held = [SECRET, {"key": SECRET}]
    if depth:
        fail(depth - 1)
    raise ValueError(f"{len(held)} things are held")


def by_structlog() -> None:
    """As K9 itself logs."""
    try:
        fail()
    except ValueError:
        telemetry.logger("k9.test").exception("it broke")


def by_logging() -> None:
    """As a library logs."""
    try:
        fail()
    except ValueError:
        logging.getLogger("library").exception("it broke")


async def by_loop() -> None:
    """As asyncio logs a callback that failed, with all that it was called with."""

    def callback(_argument: str) -> None:
        fail()

    asyncio.get_running_loop().call_soon(callback, SECRET)
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def by_task() -> None:
    """As asyncio logs a task whose failure nobody took."""

    async def work(_argument: str) -> None:
        fail()

    task = asyncio.create_task(work(SECRET))
    await asyncio.wait({task})
    del task


@pytest.mark.parametrize("rendered", ["json", "console"])
@pytest.mark.parametrize("log", [by_structlog, by_logging, by_loop, by_task])
async def test_a_traceback_shows_no_locals(rendered: str, log: Callable[[], Any]) -> None:
    """Whoever logs it: what the frames hold stays out, what happened and where is there."""
    with written(json=rendered == "json") as out:
        pending = log()
        if pending is not None:
            await pending
    text = out.getvalue()
    assert SECRET not in text
    assert "ValueError" in text
    assert "test_telemetry.py" in text
    assert "2 things are held" in text


def test_a_process_that_configures_nothing_shows_no_locals(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Such as a command."""
    by_structlog()
    text = "".join(capsys.readouterr())
    assert "ValueError" in text
    assert SECRET not in text


@pytest.mark.parametrize(
    "values",
    [
        {"detail": "x" * 1_000_000},
        {"rows": [str(number) for number in range(100_000)]},
        {"text": object(), "more": {"a": {"b": "y" * 1_000_000}}},
        {f"name-{number}": "z" * 1000 for number in range(1000)},
    ],
)
@pytest.mark.parametrize("rendered", ["json", "console"])
def test_a_log_line_has_an_end(rendered: str, values: dict[str, Any]) -> None:
    """And is JSON all the same, with what happened."""
    with written(json=rendered == "json") as out:
        telemetry.logger("k9.test").error("it was much", **values)
    text = out.getvalue()
    assert len(text) <= telemetry.LINE_CHARACTERS_MAX + 1
    assert "it was much" in text
    if rendered == "json":
        assert json.loads(text)["level"] == "error"


def test_a_deep_failure_is_one_bounded_line() -> None:
    """A chain of errors with long messages, each from deep down."""
    with written(json=True) as out:
        try:
            try:
                fail(200)
            except ValueError as error:
                raise RuntimeError("m" * 100_000) from error
        except RuntimeError:
            telemetry.logger("k9.test").exception("it broke")
    (line,) = out.getvalue().splitlines()
    assert len(line) <= telemetry.LINE_CHARACTERS_MAX
    assert json.loads(line)["event"] == "it broke"
    assert "RuntimeError" in line
