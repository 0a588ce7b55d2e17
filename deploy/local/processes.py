"""Child processes: started in a group of their own, stopped in order, found again after a crash."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic, sleep

import msgspec

from deploy.errors import CommandError

_LAUNCHER = Path(__file__).with_name("launch.py")
_TAIL_BYTES = 4096


class PidFile(msgspec.Struct, frozen=True):
    """What is noted of a child, so that the next start can find it."""

    pid: int
    identity: str


def identity(pid: int) -> str | None:
    """What tells a process from a later one of the same pid: when it started.

    None when there is no such process, or it is dead and not collected yet.
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
    # The name in brackets may hold anything; after it: state, …, start in ticks since boot.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else f"{boot}:{fields[19]}"


class Backoff:
    """How long to wait before the next start: doubled each time, and reset by a good run."""

    def __init__(self, first_s: float = 0.5, max_s: float = 30.0, good_run_s: float = 60.0) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._good_run_s = good_run_s
        self._next_s = first_s

    def after(self, ran_s: float) -> float:
        """Seconds to wait after a run of `ran_s` seconds."""
        if ran_s >= self._good_run_s:
            self._next_s = self._first_s
        wait_s = self._next_s
        self._next_s = min(self._next_s * 2, self._max_s)
        return wait_s


class Part:
    """One child process in a session of its own, so that the terminal's Ctrl-C passes it by."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environ: Callable[[], Mapping[str, str]],
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
        """Starts it; says nothing of whether it is ready."""
        with self.log.open("ab") as log:
            self._log_offset = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                str(_LAUNCHER),
                str(os.getpid()),
                *self._command,
                env=dict(self._environ()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started = monotonic()
        started = identity(self._process.pid)
        if started:
            noted = PidFile(self._process.pid, started)
            self._pid_file.write_bytes(msgspec.json.encode(noted))

    async def wait(self) -> tuple[str, float]:
        """How it ended, in words, and how many seconds it ran. Ends what it left behind too."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        code = await self._process.wait()
        _signal_group(self._process.pid, signal.SIGKILL)
        how = f"exit {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        return how, monotonic() - self._started

    async def stop(self, grace_s: float) -> bool:
        """SIGTERM, and SIGKILL after `grace_s` seconds. True when the first was enough.

        The whole group gets the SIGKILL, so that nothing it started is left.
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
        """SIGKILL to the whole group, at once."""
        if self._process is not None:
            _signal_group(self._process.pid, signal.SIGKILL)

    def last_words(self) -> str:
        """The last line that it logged in this run, where it ended by itself and not well."""
        if self._process is None or (self._process.returncode or 0) <= 0:
            return ""
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_offset, size - _TAIL_BYTES))
            lines = log.read().decode(errors="replace").split("\n")
            return next((line.strip() for line in reversed(lines) if line.strip()), "")
        return ""


def end_leftovers(directory: Path, grace_s: float, say: Callable[[str], None]) -> None:
    """Ends the processes of an earlier run that outlived it.

    A pid is signalled only where its process started when the noted one did. The emulator writes
    its data as it ends, so it is waited for.

    Raises:
        CommandError: when one cannot be ended.
    """
    noted: list[tuple[str, PidFile]] = []
    for path in sorted(directory.glob("*.json")):
        try:
            entry = msgspec.json.decode(path.read_bytes(), type=PidFile)
        except (OSError, msgspec.MsgspecError):
            entry = PidFile(0, "")
        if entry.pid > 1 and identity(entry.pid) == entry.identity:
            noted.append((path.stem, entry))
        else:
            path.unlink(missing_ok=True)
    for name, entry in noted:
        say(f"ending {name} of an earlier run (process {entry.pid})")
        _signal(entry, signal.SIGTERM)
    deadline = monotonic() + grace_s
    for name, entry in noted:
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
