"""The worker's end of a build process: start it, read its messages, kill it.

It is a program of its own, never a fork: FAISS hangs after one. It exits when this process does,
because it reads from a pipe whose other end is here.
"""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import msgspec

from core import telemetry
from core.errors import BuildFailed, K9Error
from core.models import ProgressCallback
from worker.building.protocol import BuildOutput, BuildSpec, Message

_LINE_BYTES_MAX = 1024 * 1024
_STDERR_BYTES_KEPT = 4000
_READ_BYTES = 65536
_MESSAGE = msgspec.json.Decoder(Message)

_log = telemetry.logger(__name__)


class BuildProcessCrashed(K9Error):
    """It ended without a result, or for want of memory or disk: another attempt may succeed."""


def thread_count(requested: int) -> int:
    """The number of threads to use: as requested, or for 0 every core this process may run on."""
    if requested:
        return requested
    allowed = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(allowed(0)) if allowed else os.cpu_count() or 1


async def run_build_process(
    spec: BuildSpec, spec_file: Path, report: ProgressCallback
) -> BuildOutput:
    """Builds a version in a process of its own, which reads the spec from a file.

    Cancelling this kills the process and waits for its end.

    Raises:
        BuildFailed: the build cannot succeed as requested.
        BuildProcessCrashed: the process ended without a result, or for want of memory or disk.
    """
    await asyncio.to_thread(spec_file.write_bytes, msgspec.json.encode(spec))
    # FAISS and numpy read the variables when they are imported. numpy works on threads of the
    # build's own, each with one.
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "worker.building.build_process",
        str(spec_file),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        limit=_LINE_BYTES_MAX,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": str(spec.threads), "OPENBLAS_NUM_THREADS": "1"},
    )
    reading_stderr = asyncio.create_task(_stderr_tail(process))
    try:
        last = await _read_messages(process, report)
        code = await process.wait()
        stderr = await reading_stderr
    finally:
        await _kill(process)
        reading_stderr.cancel()
    if code == 0 and last.output is not None:
        return last.output
    failure = last.failure
    if failure is not None and not failure.transient:
        raise BuildFailed(failure.detail)
    _log.error("build process crashed", code=code, stderr=stderr)
    raise BuildProcessCrashed(_describe_exit(code) if failure is None else failure.detail)


async def _read_messages(process: Process, report: ProgressCallback) -> Message:
    """Reports progress until standard output ends; the last message that was none, or an empty."""
    assert process.stdout is not None  # requested above  # noqa: S101
    last = Message()
    async for line in process.stdout:
        message = _MESSAGE.decode(line)
        if message.progress is not None:
            report(message.progress)
        else:
            last = message
    return last


async def _stderr_tail(process: Process) -> str:
    """Drains standard error, so that the process never blocks on it; returns the end of it."""
    assert process.stderr is not None  # requested above  # noqa: S101
    tail = b""
    while chunk := await process.stderr.read(_READ_BYTES):
        tail = (tail + chunk)[-_STDERR_BYTES_KEPT:]
    return tail.decode(errors="replace")


async def _kill(process: Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _describe_exit(code: int) -> str:
    if code == -signal.SIGKILL:
        return "the build process was killed, most likely for lack of memory"
    if code < 0:
        return f"the build process crashed with {signal.Signals(-code).name}"
    return f"the build process exited with status {code} and no result"
