"""The parent's side of the child that does the heavy work: spawn, listen, kill.

The child is a program of its own, never a fork: FAISS hangs after one. It holds one end of a pipe
whose other end is this process, so that it ends when this process does, however that ends.
"""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from pathlib import Path

import msgspec

from core import telemetry
from core.errors import BuildFailed, K9Error, RecallBelowTarget
from core.models import Progress
from worker.building.build_process import ChildFailure, ChildLine, ChildResult

_LINE_BYTES_MAX = 1024 * 1024
_STDERR_BYTES_KEPT = 4000

_log = telemetry.logger(__name__)


class ChildCrashed(K9Error):
    """The child ended without a result: killed for memory, a crash, a full disk. Worth a retry."""


async def run_child(job: Path, report: Callable[[Progress], None]) -> ChildResult:
    """Runs the child over a job file, and reports its progress as it comes.

    Cancelling this kills the child and waits for its end.

    Raises:
        BuildFailed: the child says that this build cannot succeed as asked.
        ChildCrashed: it ended without a word, or for want of disk or memory.
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "worker.building.build_process",
        str(job),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        limit=_LINE_BYTES_MAX,
        start_new_session=True,
    )
    tail = asyncio.create_task(_tail(child))
    try:
        last = await _listen(child, report)
        code = await child.wait()
        noise = await tail
    finally:
        await _end(child)
        tail.cancel()
    if last is not None and last.result is not None and code == 0:
        return last.result
    if last is not None and last.failed is not None and not last.failed.passing:
        raise _failure(last.failed)
    _log.error("child crashed", code=code, stderr=noise)
    said = None if last is None else last.failed
    raise ChildCrashed(_crash(code) if said is None else said.detail)


async def _listen(child: Process, report: Callable[[Progress], None]) -> ChildLine | None:
    assert child.stdout is not None  # asked for above  # noqa: S101
    decoder = msgspec.json.Decoder(ChildLine)
    last = None
    async for raw in child.stdout:
        line = decoder.decode(raw)
        if line.stage is not None:
            report(Progress(line.stage, line.done, line.total))
        else:
            last = line
    return last


async def _tail(child: Process) -> str:
    """Drains standard error, so that the child never blocks on it, and keeps its end."""
    assert child.stderr is not None  # asked for above  # noqa: S101
    kept = b""
    while chunk := await child.stderr.read(65536):
        kept = (kept + chunk)[-_STDERR_BYTES_KEPT:]
    return kept.decode(errors="replace")


async def _end(child: Process) -> None:
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()


def _failure(failed: ChildFailure) -> BuildFailed:
    if failed.recall is not None and failed.target is not None:
        return RecallBelowTarget(failed.recall, failed.target, failed.detail)
    return BuildFailed(failed.detail)


def _crash(code: int) -> str:
    if code == -signal.SIGKILL:
        return "the build's process was killed, most likely for memory"
    if code < 0:
        return f"the build's process crashed with {signal.Signals(-code).name}"
    return f"the build's process ended with status {code} and no result"
