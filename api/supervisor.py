"""Several API processes on one port: starts them, starts again what ends, and stops all of them.

They are forks of this process, made once everything is imported: what they do not change is in
memory once, and one that died is back in a fraction of the time of a start. This process has one
thread and no event loop, and answers nothing, so it can fork at any time.

Each listens on a socket of its own, all on one port, which this process reserves by a socket that
does not listen: new connections go to the processes that there are (decision 0026). The first
process starts alone: an error is then told once, and the first answer comes as soon as of a process
alone.
"""

import os
import select
import signal
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from time import monotonic
from typing import Final

from api.server.siblings import Siblings
from core import telemetry
from core.retry import RetryPolicy
from core.settings import Http
from core.stalls import freeze_memory

_RESTART: Final = RetryPolicy(first_s=0.1, max_s=30.0, jitter=0.0)
_STABLE_S: Final = 60.0
"""A process that ran this long is started again after the first delay."""
_LATE_S: Final = 3.0
"""How long after its own time for requests in flight a process that stops is killed."""
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
_WAKE_BYTES: Final = 4096

_log = telemetry.logger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """What one of several processes has to know."""

    number: int
    """From 0."""
    restarts: int
    """How often its place was filled again."""
    siblings: Siblings
    operations: socket | None
    """The port for operations, which all accept from; None where there is none."""
    alone: bool
    """Whether no other process answers meanwhile."""
    parent: int
    """A pipe that ends with the parent."""
    started: int
    """A pipe to which a byte is written when requests are accepted."""


@dataclass(slots=True)
class _Process:
    """One place, and the process that has it now."""

    number: int
    pid: int = 0
    """0: none."""
    started: int = -1
    """The pipe on which it says that it accepts requests."""
    accepts: bool = False
    since: float = 0.0
    failures: int = 0
    """Times in a row that it ended before it was stable."""
    starts: int = 0
    due: float = 0.0
    """When it is started again."""


class Supervisor:
    """The parent of the API processes."""

    def __init__(self, http: Http, reserved: socket, operations: socket | None) -> None:
        """Takes the socket that has the port, and one for operations that all accept from."""
        self._http = http
        self._reserved = reserved
        self._operations = operations
        self._siblings = Siblings(Path(tempfile.mkdtemp(prefix="k9-api-")), http.api_processes)
        self._processes = [_Process(number) for number in range(http.api_processes)]
        self._life = os.pipe()
        self._wake = os.pipe()
        self._stop_asked = False
        self._kill_at = float("inf")
        self._status = 0

    def run(self) -> Place | int:
        """In each child its place; in the parent, once all have ended, the exit status."""
        os.set_blocking(self._wake[1], False)
        signal.set_wakeup_fd(self._wake[1])
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)
        freeze_memory()  # a collection in a child would write to what is shared
        while True:
            for process in self._startable():
                place = self._start(process)
                if place is not None:
                    return place
            self._wait()
            self._reap()
            if self._stop_asked and self._kill_at == float("inf"):
                self._stop()
            if monotonic() >= self._kill_at:
                self._signal(signal.SIGKILL)
            if self._stop_asked and not self._running():
                self._siblings.remove()
                return self._status

    def _on_signal(self, number: int, _frame: object) -> None:
        if number != signal.SIGCHLD:
            self._stop_asked = True

    # --- starting ---------------------------------------------------------------------------------

    def _running(self) -> list[_Process]:
        return [process for process in self._processes if process.pid]

    def _accepting(self) -> bool:
        return any(process.accepts for process in self._processes)

    def _startable(self) -> list[_Process]:
        """Those to start now: while none accepts requests, one alone."""
        if self._stop_asked:
            return []
        due = [p for p in self._processes if not p.pid and monotonic() >= p.due]
        if self._accepting():
            return due
        return due[:1] if not self._running() else []

    def _start(self, process: _Process) -> Place | None:
        """Forks; returns the place in the child, and None in the parent."""
        alone = not self._accepting()
        mine, its = os.pipe()
        # A signal between the fork and the child's own handlers would be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            pipes = [p.started for p in self._processes if p.started >= 0]
            _close((mine, self._life[1], *self._wake, *pipes))
            return Place(
                number=process.number,
                restarts=process.starts,
                siblings=self._siblings,
                operations=self._operations,
                alone=alone,
                parent=self._life[0],
                started=its,
            )
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.close(its)
        process.pid, process.started, process.since = pid, mine, monotonic()
        process.starts += 1
        return None

    # --- waiting ----------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Until a signal, a process that accepts requests, or the time of the next step."""
        starting = {p.started: p for p in self._processes if p.started >= 0 and not p.accepts}
        times = [self._kill_at]
        if not self._stop_asked and (self._accepting() or not self._running()):
            times += [process.due for process in self._processes if not process.pid]
        left_s = min(times) - monotonic()
        timeout = None if left_s == float("inf") else max(0.0, left_s)
        ready, _, _ = select.select([self._wake[0], *starting], [], [], timeout)
        for descriptor in ready:
            if descriptor == self._wake[0]:
                os.read(descriptor, _WAKE_BYTES)
            elif os.read(descriptor, 1):
                starting[descriptor].accepts = True
            else:  # it ends, and says nothing any more
                _close((descriptor,))
                starting[descriptor].started = -1

    def _reap(self) -> None:
        """Notes which processes have ended, and when each is started again."""
        for process in self._running():
            pid, code = os.waitpid(process.pid, os.WNOHANG)
            if pid == 0:
                continue
            accepted, ran_s = process.accepts, monotonic() - process.since
            process.pid, process.accepts = 0, False
            if process.started >= 0:
                _close((process.started,))
                process.started = -1
            self._ended(process, os.waitstatus_to_exitcode(code), ran_s, accepted=accepted)

    def _ended(self, process: _Process, code: int, ran_s: float, *, accepted: bool) -> None:
        how = f"exit {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        if self._stop_asked:
            if code and (accepted or code != -signal.SIGTERM):
                self._status = 1
            return
        if not accepted and not self._accepting():
            sys.stderr.write(f"the API cannot start: process {process.number} ended ({how})\n")
            self._status, self._stop_asked = 1, True
            return
        process.failures = 1 if ran_s >= _STABLE_S else process.failures + 1
        delay_s = _RESTART.delay_s(process.failures)
        process.due = monotonic() + delay_s
        _log.error("API process ended", process=process.number, how=how, again_in_s=delay_s)

    # --- stopping ---------------------------------------------------------------------------------

    def _stop(self) -> None:
        """Lets every process finish; each closes the port when its notice is over."""
        self._kill_at = monotonic() + self._http.notice_s + self._http.drain_s + _LATE_S
        self._reserved.close()  # where it listens, connections would wait for nobody
        if self._operations is not None:
            self._operations.close()
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._running():
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
