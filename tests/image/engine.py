"""A Docker engine for the test: the one of DOCKER_HOST, or one of its own that ends with it.

Its own keeps everything in one temporary directory. What it changes outside of that, a bridge and
rules of the firewall, is put back, unless another engine is there already and uses them too.
"""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Final

LAUNCHER: Final = Path(__file__).parents[2] / "deploy" / "local" / "launch.py"
_BRIDGE: Final = Path("/sys/class/net/docker0")
_BUILDX_FROM: Final = 23
_LOCK: Final = Path("/run/k9-test-engine.lock")
"""Held while an engine of a test runs; the next test waits for it."""
_FORWARDING: Final = Path("/proc/sys/net/ipv4/ip_forward")
_START_S: Final = 60.0
_STOP_S: Final = 120.0


class Unusable(Exception):
    """The test cannot run here; the message says what to do."""


class Engine:
    """The `docker` command of one engine."""

    def __init__(self, host: str, *, own: bool) -> None:
        self.host = host
        self.own = own
        """It was started for this test, and has no image but those made here."""
        self.program = _client()
        self.environ = {**os.environ, "DOCKER_HOST": host, "DOCKER_BUILDKIT": "1"}

    def run(
        self, *arguments: str, check: bool = True, data: bytes | None = None, timeout_s: float = 600
    ) -> str:
        """What a command of `docker` prints.

        Raises:
            RuntimeError: it failed; with what it said.
        """
        done = subprocess.run(
            [self.program, *arguments],
            env=self.environ,
            input=data,
            capture_output=True,
            check=False,
            timeout=timeout_s,
        )
        if check and done.returncode != 0:
            said = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise RuntimeError(f"docker {' '.join(arguments[:3])}: {said[-2000:]}")
        return done.stdout.decode(errors="replace")

    def has_image(self, tag: str) -> bool:
        """Whether an image of that name is there."""
        return bool(self.run("image", "ls", "--quiet", tag).strip())


def _client() -> str:
    """The first `docker` in the path that can build with secrets: from 23 on it needs a plugin.

    Raises:
        Unusable: there is none.
    """
    for directory in [*os.get_exec_path(), "/usr/bin"]:
        program = shutil.which("docker", path=directory)
        if program is None:
            continue
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
        version = re.search(r"version (\d+)", said.stdout)
        plugin = subprocess.run([program, "buildx", "version"], capture_output=True, check=False)
        if plugin.returncode == 0 or (version and int(version[1]) < _BUILDX_FROM):
            return program
    raise Unusable("no `docker` in the path that can build: install Docker's, or its buildx plugin")


@contextmanager
def engine() -> Iterator[Engine]:
    """The engine of DOCKER_HOST, else one that is started, and ended with all that it runs.

    Raises:
        Unusable: there is none, and none can be started.
    """
    host = os.environ.get("DOCKER_HOST")
    if host:
        found = Engine(host, own=False)
        try:
            found.run("version", timeout_s=30)
        except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
            raise Unusable(f"the engine of DOCKER_HOST={host} does not answer: {error}") from None
        yield found
        return
    daemon = shutil.which("dockerd")
    if daemon is None or os.geteuid() != 0:
        raise Unusable(
            "set DOCKER_HOST, as in DOCKER_HOST=unix:///var/run/docker.sock, or run as root where "
            "Debian's docker.io is installed"
        )
    with _LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # engines of two tests would share a bridge
        directory = Path(tempfile.mkdtemp(prefix="k9-image-"))
        try:
            with _network_put_back(), _running(daemon, directory) as started:
                yield started
        finally:
            shutil.rmtree(directory)


@contextmanager
def _running(daemon: str, directory: Path) -> Iterator[Engine]:
    socket = directory / "docker.sock"
    log = directory / "log"
    places = {
        "--host": f"unix://{socket}",
        "--data-root": str(directory / "data"),
        "--exec-root": str(directory / "exec"),
        "--pidfile": str(directory / "pid"),
    }
    command = [daemon, *(word for place in places.items() for word in place)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            # SIGTERM reaches it even where this process is killed.
            [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started = Engine(f"unix://{socket}", own=True)
    try:
        _wait_until_it_answers(process, started, log)
        yield started
    finally:
        _end(process)


def _wait_until_it_answers(process: "subprocess.Popen[bytes]", started: Engine, log: Path) -> None:
    deadline = monotonic() + _START_S
    while True:
        with suppress(RuntimeError, subprocess.TimeoutExpired):
            started.run("version", timeout_s=10)
            return
        if process.poll() is not None or monotonic() > deadline:
            lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise Unusable(f"dockerd does not start: {lines[-1]}")
        sleep(0.2)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends the engine: it stops its containers first, and then its containerd."""
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        sys.stderr.write("dockerd did not end in time, and is killed\n")
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def _network_put_back() -> Iterator[None]:
    """Removes what the engine's network leaves: its bridge, rules of the firewall, forwarding."""
    save, restore = shutil.which("iptables-save"), shutil.which("iptables-restore")
    if _BRIDGE.exists() or save is None or restore is None:
        yield
        return
    before = _tables(save)
    forwarding = _FORWARDING.read_text()
    try:
        yield
    finally:
        after = _tables(save)
        for table in after.keys() - before.keys():  # nobody had used it: it is left empty
            chains = [line.split() for line in after[table] if line.startswith(":")]
            policies = [f"{chain[0]} ACCEPT [0:0]" for chain in chains if chain[1] != "-"]
            before[table] = [f"*{table}", *policies, "COMMIT"]
        lines = "\n".join(line for table in before.values() for line in table) + "\n"
        subprocess.run([restore], input=lines, text=True, check=True)
        _FORWARDING.write_text(forwarding)
        if _BRIDGE.exists():
            ip = shutil.which("ip") or "/sbin/ip"
            subprocess.run([ip, "link", "delete", _BRIDGE.name], check=True)


def _tables(save: str) -> dict[str, list[str]]:
    """The lines of each table of the firewall, by its name."""
    said = subprocess.run([save], capture_output=True, text=True, check=True).stdout
    tables: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in said.splitlines():
        if line.startswith("*"):
            lines = tables[line[1:]] = []
        if not line.startswith("#"):
            lines.append(line)
    return tables
