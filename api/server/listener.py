"""The API's listener, and the one for operations, in one event loop.

The second has a port and a table of connections of its own, so that clients cannot take what health
checks and scrapes of metrics need.
"""

import asyncio
import errno
import fcntl
import logging
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from functools import partial
from typing import Any, Final, cast

import msgspec
import uvicorn
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp, Receive, Scope, Send
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from uvicorn.server import ServerState

from api import metrics
from api.http.context import request_id_of
from api.http.problems import problem_reply
from api.server.connections import RESERVED_FILES, ConnectionTable, open_files_max
from api.server.gate import Gate
from api.server.protocol import HttpProtocol
from core import telemetry
from core.errors import SettingsError
from core.settings import Http

BACKLOG: Final = 1024
_HEALTH: Final = "/health/"
_OPERATIONS_CONNECTIONS_MAX: Final = 64

_SPREADS: Final = sys.platform == "linux"

_log = telemetry.logger(__name__)


class Server(uvicorn.Server):
    """uvicorn's, without its handling of signals and its exit from the process."""

    def __init__(
        self, app: ASGIApp, http: Http, *, started: Callable[[], Any], gate: Gate | None = None
    ) -> None:
        self.table = ConnectionTable(http)
        super().__init__(_config(app, self.table, gate, lifespan="on"))
        self._on_started = started
        metrics.CONNECTIONS.set_function(lambda: self.table.all.count)

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Signals are for whoever runs the server."""
        return nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts the application, and listens."""
        try:
            await super().startup(sockets)
        except SystemExit:  # the application did not start, and has said why
            self.should_exit = True
            return
        self._on_started()

    def drain(self) -> None:
        """Keeps no connection open after its reply from now on."""
        self.table.draining = True

    def stop(self) -> None:
        """Closes the port, and ends when what is in flight is answered."""
        self.drain()
        self.should_exit = True


def _config(
    app: ASGIApp, table: ConnectionTable, gate: Gate | None, *, lifespan: Any
) -> uvicorn.Config:
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    return uvicorn.Config(
        cast("Any", app),
        http=cast("Any", partial(HttpProtocol, table, gate)),
        ws="none",
        loop="none",
        interface="asgi3",
        lifespan=lifespan,
        backlog=BACKLOG,
        log_config=None,
        access_log=False,
        proxy_headers=False,  # the protocol reads X-Forwarded-For, of trusted proxies alone
        server_header=False,
    )


def bound_socket(http: Http, port: int, variable: str, *, shared: bool = False) -> socket.socket:
    """A socket that has the port, and does not listen yet; `shared`: others may have it too.

    Raises:
        SettingsError: the port is taken, or the address is not this machine's.
    """
    try:
        found = socket.getaddrinfo(http.host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used: {error}"
        raise SettingsError(f"{variable}={port}: the port {reason} on {http.host}") from None
    bound.setblocking(False)
    return bound


def reserved_socket(http: Http) -> socket.socket:
    """A socket that has the API's port for all of its processes, and does not listen yet.

    Raises:
        SettingsError: as of `bound_socket`. A port of several is first bound as one that nobody
            shares: another K9 on it would get a part of the requests.
    """
    alone = bound_socket(http, http.port, "K9_PORT")
    if not _SPREADS or http.api_processes == 1:
        return alone
    port: int = alone.getsockname()[1]
    alone.close()
    return bound_socket(http, port, "K9_PORT", shared=True)


def own_socket(http: Http, reserved: socket.socket) -> socket.socket:
    """The socket on which one of several processes listens.

    Linux spreads new connections over the sockets that listen on a port (decision 0026). Elsewhere
    all processes accept from the same one.

    Raises:
        SettingsError: as of `bound_socket`.
    """
    if not _SPREADS:
        return reserved
    with reserved:
        own = bound_socket(http, reserved.getsockname()[1], "K9_PORT", shared=True)
    return _first_closed(own, http)


def _first_closed(bound: socket.socket, http: Http) -> socket.socket:
    """The same socket, under a descriptor above those of its connections.

    Linux releases what a killed process had open from the highest descriptor down. Below them, the
    socket would still take clients whose connections have just ended, and then refuse them. Where
    there is no such descriptor it stays as it is.
    """
    above = min(http.connections_max, open_files_max()) + RESERVED_FILES - 1
    with suppress(OSError):
        moved = socket.socket(fileno=fcntl.fcntl(bound.fileno(), fcntl.F_DUPFD_CLOEXEC, above))
        bound.close()
        moved.setblocking(False)
        return moved
    return bound


def operations_socket(http: Http) -> socket.socket | None:
    """A socket that has the port for operations; None where there is none.

    A port that is taken is a warning: it is not worth refusing work for.
    """
    if http.metrics_port == 0:
        return None
    try:
        return bound_socket(http, http.metrics_port, "K9_METRICS_PORT")
    except SettingsError as error:
        _log.warning("no port for operations", error=str(error))
        return None


def operations(app: ASGIApp, http: Http) -> AbstractAsyncContextManager[None]:
    """Answers `/metrics` and health on the port for operations until the end of the block."""
    return listening(operations_app(app, REGISTRY), http, operations_socket(http))


@asynccontextmanager
async def listening(app: ASGIApp, http: Http, bound: socket.socket | None) -> AsyncIterator[None]:
    """Has an application answer operations on a socket until the end of the block."""
    if bound is None:
        yield
        return
    limits = msgspec.structs.replace(
        http,
        connections_max=_OPERATIONS_CONNECTIONS_MAX,
        connections_per_address_max=_OPERATIONS_CONNECTIONS_MAX,
        trusted_proxies=(),
    )
    table = ConnectionTable(limits)
    config = _config(app, table, None, lifespan="off")
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()

    def protocol() -> HttpProtocol:
        return HttpProtocol(
            table, None, config=config, server_state=state, app_state={}, _loop=loop
        )

    if bound.family == socket.AF_UNIX:
        server = await loop.create_unix_server(protocol, sock=bound, backlog=BACKLOG)
    else:
        server = await loop.create_server(protocol, sock=bound, backlog=BACKLOG)
    try:
        yield
    finally:
        server.close()
        table.stop()
        for connection in list(state.connections):
            connection.transport.abort()


def operations_app(app: ASGIApp, registry: Collector) -> ASGIApp:
    """What answers `/metrics` from a registry, and health by the application."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path.startswith(_HEALTH):
            await app(scope, receive, send)
        elif path == "/metrics":
            await _send_metrics(registry, scope, send)
        else:
            await problem_reply(HTTPException(status_code=404)).send(send, request_id_of(b""))

    return answer


async def _send_metrics(registry: Collector, scope: Scope, send: Send) -> None:
    """Sends the metrics, in the format that the scrape accepts.

    1,800 lines of them take 13 ms to write: in a thread, which gives way to the event loop.
    """
    accepted = [value.decode("latin-1") for name, value in scope["headers"] if name == b"accept"]
    encode, content_type = choose_encoder(",".join(accepted))
    text = await asyncio.to_thread(encode, registry)
    headers = [
        (b"content-type", content_type.encode()),
        (b"content-length", str(len(text)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text, "more_body": False})
