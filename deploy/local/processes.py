"""Child processes of `k9 dev`: each in a group of its own, and found again after a crash.

Two mechanisms end the children of a supervisor that was killed. `launch.py` has Linux send them
SIGTERM at once. The next start finds the rest by their pid files, and waits for them: those of a
system without such a signal, those that ignore it, and an emulator that is still writing its data.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import Final

import msgspec

from deploy.callbacks import MessageCallback
from deploy.errors import CommandError

_LAUNCHER = Path(__file__).with_name("launch.py")
_TAIL_BYTES = 4096


class PidFile(msgspec.Struct, frozen=True):
    """Identifies a child process to the next start."""

    pid: int
    identity: str


_PID_FILE: Final = msgspec.json.Decoder(PidFile)


def identity(pid: int) -> str | None:
    """The start time of a process, which distinguishes it from a later one with the same pid.

    None if there is no such process, or it is a zombie.
    """
    stat = Path(f"/proc/{pid}/stat")
    if not Path("/proc/self/stat").exists():  # macOS
        shown = subprocess.run(  # noqa: S603 - an int is all that varies
            ["/bin/ps", "-o", "lstart=", "-p", str(pid)],
            capture_output=True,
            text=True,
            check=False,
        )
        return shown.stdout.strip() or None
    try:
        text = stat.read_text(encoding="utf-8", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None
    # The name in brackets may contain anything. After it: state, …, start time in ticks.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else f"{boot}:{fields[19]}"


class ManagedProcess:
    """A child process in a session of its own, so that Ctrl-C in the terminal does not reach it.

    `environ` is read at each start.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environ: Mapping[str, str],
        log: Path,
        pid_file: Path,
    ) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._environ = environ
        self._pid_file = pid_file
        self._process: asyncio.subprocess.Process | None = None
        self._log_offset = 0
        self._started = 0.0

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int | None:
        """Its process id, once started."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Starts it, without waiting until it is ready."""
        with self.log.open("ab") as log:
            self._log_offset = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                str(_LAUNCHER),
                str(os.getpid()),
                *self._command,
                env=dict(self._environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started = monotonic()
        started = identity(self._process.pid)
        if started:
            entry = PidFile(self._process.pid, started)
            self._pid_file.write_bytes(msgspec.json.encode(entry))

    async def wait(self) -> tuple[str, float]:
        """Waits for its end, and kills what is left of its group.

        Returns:
            How it ended, for a message, and how many seconds it ran.
        """
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        code = await self._process.wait()
        _signal_group(self._process.pid, signal.SIGKILL)
        how = f"exit {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        return how, monotonic() - self._started

    async def stop(self, grace_s: float) -> bool:
        """Sends SIGTERM, and SIGKILL to the whole group once it has ended or after `grace_s`.

        Returns:
            Whether it ended in time and without an error.
        """
        process = self._process
        if process is None:
            return True
        clean = True
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(grace_s):
                await process.wait()
        except TimeoutError:
            clean = False
        _signal_group(process.pid, signal.SIGKILL)
        await process.wait()
        self._pid_file.unlink(missing_ok=True)
        return clean and process.returncode in {0, -signal.SIGTERM}

    def kill(self) -> None:
        """Sends SIGKILL to the whole group."""
        if self._process is not None:
            _signal_group(self._process.pid, signal.SIGKILL)

    def last_line(self) -> str:
        """The last line that it logged in this run, if it ended by itself with an error."""
        if self._process is None or (self._process.returncode or 0) <= 0:
            return ""
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_offset, size - _TAIL_BYTES))
            lines = log.read().decode(errors="replace").split("\n")
            return next((line.strip() for line in reversed(lines) if line.strip()), "")
        return ""


def end_orphans(directory: Path, grace_s: float, message: MessageCallback) -> None:
    """Ends the processes of an earlier run that outlived their supervisor.

    Only a process with the start time in the pid file is signalled. The emulator writes its data as
    it ends, so it is waited for.

    Raises:
        CommandError: one does not end.
    """
    orphans: list[tuple[str, PidFile]] = []
    for path in sorted(directory.glob("*.json")):
        try:
            entry = _PID_FILE.decode(path.read_bytes())
        except (OSError, msgspec.MsgspecError):
            entry = PidFile(0, "")
        if entry.pid > 1 and identity(entry.pid) == entry.identity:
            orphans.append((path.stem, entry))
        else:
            path.unlink(missing_ok=True)
    for name, entry in orphans:
        message(f"ending {name} of an earlier run (process {entry.pid})")
        _signal(entry, signal.SIGTERM)
    deadline = monotonic() + grace_s
    for name, entry in orphans:
        while identity(entry.pid) == entry.identity and monotonic() < deadline:
            sleep(0.05)
        if identity(entry.pid) == entry.identity:
            _signal(entry, signal.SIGKILL)
            sleep(0.5)
        if identity(entry.pid) == entry.identity:
            raise CommandError(f"{name} of an earlier run does not end (process {entry.pid})")
        (directory / f"{name}.json").unlink(missing_ok=True)


def _signal(entry: PidFile, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgid(entry.pid) == entry.pid:
            os.killpg(entry.pid, number)
        else:
            os.kill(entry.pid, number)


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
