"""Programs of K9 as processes that start at once: forks of one that has imported all of them.

`python -m tests.fork_server SOCKET`. Each connection asks for one process: a JSON object of what
`exec` would be given, with the descriptors that become 0, 1 and 2. The answers are the process id
and, when it has ended, its status. It ends, and all that it started, with its standard input.
"""

import atexit
import gc
import os
import pkgutil
import runpy
import select
import shutil
import signal
import socket
import struct
import sys
import threading
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec

from tests.captured.secrets_of_settings import DIRECTORY

COVERAGE: Final = "TEST_COVERAGE"
"""The variable that names the directory of `tests.branch_coverage`, in a run that is measured."""
LENGTH: Final = struct.Struct("!I")
NUMBER: Final = struct.Struct("!i")
BUILD: Final = "worker.building.build_process"
_FDS: Final = 3
_PACKAGES: Final = ("api", "core", "worker", "deploy.aws", "deploy.cli", "deploy.data")


class Order(msgspec.Struct, frozen=True):
    """What to run."""

    program: str
    """A package or module that `python -m` would run, or `k9`."""
    arguments: list[str]
    environ: dict[str, str]
    directory: str
    leads_group: bool = False
    """Whether it is the first of a process group of its own."""


def _preload() -> None:
    """Imports what the programs import, with nothing of any test in it."""
    coverage = import_module("tests.branch_coverage") if COVERAGE in os.environ else None
    for name in _PACKAGES:
        package = import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.endswith("__main__"):
                import_module(module.name)
    if coverage is not None:
        coverage.settle()
    gc.collect()
    gc.freeze()


def _read(connection: socket.socket) -> tuple[Order, list[int]]:
    head, fds, _, _ = socket.recv_fds(connection, LENGTH.size, _FDS)
    left: int = LENGTH.unpack(head)[0]
    data = b""
    while len(data) < left:
        data += connection.recv(left - len(data))
    return msgspec.json.decode(data, type=Order), fds


def _serve(listener: socket.socket) -> Order:
    """Forks until standard input ends. Returns in each child, and never in the parent."""
    children: dict[int, socket.socket] = {}
    wake, waking = os.pipe()
    os.set_blocking(waking, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waking)
    while True:
        ready = select.select([listener.fileno(), wake, 0], [], [])[0]
        if 0 in ready:
            for child in children:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            # A parent that was killed could not remove the socket's directory.
            shutil.rmtree(Path(sys.argv[1]).parent, ignore_errors=True)
            os._exit(0)
        if wake in ready:
            os.read(wake, 4096)
            _report_ends(children)
        if listener.fileno() in ready:
            connection, _ = listener.accept()
            order, fds = _read(connection)
            child = os.fork()
            if child == 0:
                signal.set_wakeup_fd(-1)
                for each in (listener, connection, *children.values()):
                    each.close()
                os.close(wake)
                os.close(waking)
                _become(order, fds)
                return order
            if order.leads_group:
                os.setpgid(child, child)  # before anyone knows of it
            for fd in fds:
                os.close(fd)
            children[child] = connection
            connection.sendall(NUMBER.pack(child))


def _report_ends(children: dict[int, socket.socket]) -> None:
    while children:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child == 0:
            return
        with suppress(OSError), children.pop(child) as connection:
            connection.sendall(NUMBER.pack(os.waitstatus_to_exitcode(status)))


def _become(order: Order, fds: list[int]) -> None:
    """Makes the present process what the interpreter would have made of the order."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    os.environ.clear()
    os.environ.update(order.environ)
    os.chdir(order.directory)
    command = ["-m", order.program] if order.program != "k9" else ["-c", "k9"]
    sys.orig_argv[:] = [sys.executable, *command, *order.arguments]
    sys.argv[:] = [order.program, *order.arguments]
    written = os.environ.pop(COVERAGE, None)
    if written:
        import_module("tests.branch_coverage").write_at_end(Path(written))
    copies = os.environ.get(DIRECTORY)
    if copies:
        customize: Any = import_module("sitecustomize")
        customize.begin(Path(copies))


def main() -> None:
    """Serves, and in each child runs the program."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(sys.argv[1])
    listener.listen(16)
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    _preload()
    order = _serve(listener)
    status = 0
    try:
        _run(order)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except BaseException:  # noqa: BLE001 - it is shown as the interpreter shows it
        status = 1
        sys.excepthook(*sys.exc_info())
    _end(status)


def _run(order: Order) -> None:
    if order.program == "k9":
        from deploy.cli.main import main as k9  # noqa: PLC0415 - imported long ago

        k9()
    elif order.program == BUILD:
        from core.vectors.families import set_threads  # noqa: PLC0415 - as above
        from worker.building.build_process import main as build  # noqa: PLC0415 - as above

        set_threads(int(os.environ["OMP_NUM_THREADS"]))  # FAISS was imported without
        sys.exit(build(order.arguments))
    else:
        runpy.run_module(order.program, run_name="__main__", alter_sys=True)


def _end(status: int) -> NoReturn:
    """Ends as the interpreter does, but leaves the memory to the system.

    To release each object would copy all of the fork server's memory first: 0.15 s.
    """
    threading._shutdown()  # type: ignore[attr-defined] # noqa: SLF001 - joins threads
    atexit._run_exitfuncs()  # noqa: SLF001
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
