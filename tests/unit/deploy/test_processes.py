import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deploy.local.processes import ManagedProcess, end_orphans, identity

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""
WITH_CHILD = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
child.wait()
"""


def _process(directory: Path, code: str) -> ManagedProcess:
    command = [sys.executable, "-c", code]
    return ManagedProcess(
        "part", command, os.environ, directory / "part.log", directory / "part.json"
    )


@asynccontextmanager
async def _started(directory: Path, code: str) -> AsyncIterator[ManagedProcess]:
    process = _process(directory, code)
    await process.start()
    try:
        yield process
    finally:
        process.kill()


async def _output(process: ManagedProcess) -> str:
    """The part's first line, once it is there."""
    for _ in range(1000):
        text = process.log.read_text()
        if text.endswith("\n"):
            return text
        await asyncio.sleep(0.02)
    raise TimeoutError("the part said nothing")


async def _gone(pid: int) -> bool:
    for _ in range(250):
        if identity(pid) is None:
            return True
        await asyncio.sleep(0.02)
    return False


async def test_a_part_that_ends_by_itself_leaves_its_last_line(tmp_path: Path) -> None:
    """What it logged last says why, and is told with the exit status."""
    async with _started(tmp_path, "raise SystemExit('no such luck')") as process:
        how, ran_s = await process.wait()
        assert (how, process.last_line()) == ("exit 1", "no such luck")
        assert ran_s < 20
        assert not process.running


async def test_a_part_is_stopped_by_sigterm(tmp_path: Path) -> None:
    """It had its chance to end well, and its pid file goes with it."""
    async with _started(tmp_path, "import time; time.sleep(60)") as process:
        assert (tmp_path / "part.json").exists()
        assert await process.stop(grace_s=10)
        assert not (tmp_path / "part.json").exists()


async def test_a_part_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    """After its grace, and the stop says that it was not clean."""
    async with _started(tmp_path, STUBBORN) as process:
        await _output(process)
        assert not await process.stop(grace_s=0.2)
        assert not process.running


async def test_what_a_part_started_ends_with_it(tmp_path: Path) -> None:
    """A grandchild is in the same group."""
    async with _started(tmp_path, WITH_CHILD) as process:
        grandchild = int(await _output(process))
        await process.stop(grace_s=5)
        assert await _gone(grandchild)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a dead parent's children")
async def test_parts_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    """SIGKILL gives the supervisor no chance to stop them itself."""
    code = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from deploy.local.processes import ManagedProcess\n"
        "async def main():\n"
        "    command = [sys.executable, '-c', 'import time; time.sleep(60)']\n"
        "    process = ManagedProcess('p', command, os.environ, Path('l'), Path('p.json'))\n"
        "    await process.start()\n"
        "    print(process.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    await asyncio.sleep(0.3)  # for the launcher to have asked for the signal
    assert identity(pid) is not None
    parent.kill()
    await parent.wait()
    assert await _gone(pid)


def _sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True
    )


def test_leftovers_of_an_earlier_run_are_ended(tmp_path: Path) -> None:
    """Those that outlived a crash would hold ports and data."""
    with _sleeper() as process:
        noted = {"pid": process.pid, "identity": identity(process.pid)}
        (tmp_path / "api.json").write_text(json.dumps(noted))
        said: list[str] = []
        end_orphans(tmp_path, 10, said.append)
        assert process.wait(10) == -signal.SIGTERM
    assert said == [f"ending api of an earlier run (process {process.pid})"]
    assert not list(tmp_path.glob("*.json"))


def test_a_pid_that_is_someone_elses_now_is_not_signalled(tmp_path: Path) -> None:
    """Pids are used again: only the process that was noted is ended."""
    with _sleeper() as process:
        noted = {"pid": process.pid, "identity": "started at another time"}
        (tmp_path / "api.json").write_text(json.dumps(noted))
        (tmp_path / "aws.json").write_text("cut sho")
        end_orphans(tmp_path, 10, pytest.fail)
        time.sleep(0.1)
        assert process.poll() is None
        process.kill()
    assert not list(tmp_path.glob("*.json"))
