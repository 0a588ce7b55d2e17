"""The API's listener, and the one for operations, in one event loop.

The second has a port and a table of connections of its own, so that clients cannot take what health
checks and scrapes of metrics need.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import Any, Final, cast

import msgspec
import uvicorn
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp, Receive, Scope, Send
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from uvicorn.server import ServerState

from api import metrics
from api.http.context import request_id_of
from api.http.problems import problem_reply
from api.server.connections import ConnectionTable
from api.server.protocol import HttpProtocol
from core import telemetry
from core.errors import SettingsError
from core.settings import Http

BACKLOG: Final = 1024
_HEALTH: Final = "/health/"
_OPERATIONS_CONNECTIONS_MAX: Final = 64

_log = telemetry.logger(__name__)


class Server(uvicorn.Server):
    """uvicorn's, without its handling of signals and its exit from the process."""

    def __init__(self, app: ASGIApp, http: Http, *, started: Callable[[], Any]) -> None:
        self.table = ConnectionTable(http)
        super().__init__(_config(app, self.table, lifespan="on"))
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


def _config(app: ASGIApp, table: ConnectionTable, *, lifespan: Any) -> uvicorn.Config:
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    return uvicorn.Config(
        cast("Any", app),
        http=cast("Any", partial(HttpProtocol, table)),
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


def bound_socket(http: Http, port: int, variable: str) -> socket.socket:
    """A socket that has the port, and does not listen yet.

    Raises:
        SettingsError: the port is taken, or the address is not this machine's.
    """
    try:
        found = socket.getaddrinfo(http.host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used: {error}"
        raise SettingsError(f"{variable}={port}: the port {reason} on {http.host}") from None
    bound.setblocking(False)
    return bound


@asynccontextmanager
async def operations(app: ASGIApp, http: Http) -> AsyncIterator[None]:
    """Answers `/metrics` and health on the port for operations until the end of the block.

    A port that is taken is a warning: it is not worth refusing work for.
    """
    if http.metrics_port == 0:
        yield
        return
    try:
        bound = bound_socket(http, http.metrics_port, "K9_METRICS_PORT")
    except SettingsError as error:
        _log.warning("no port for operations", error=str(error))
        yield
        return
    limits = msgspec.structs.replace(
        http,
        connections_max=_OPERATIONS_CONNECTIONS_MAX,
        connections_per_address_max=_OPERATIONS_CONNECTIONS_MAX,
        trusted_proxies=(),
    )
    table = ConnectionTable(limits)
    config = _config(_operations_app(app), table, lifespan="off")
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()

    def protocol() -> HttpProtocol:
        return HttpProtocol(table, config=config, server_state=state, app_state={}, _loop=loop)

    server = await loop.create_server(protocol, sock=bound, backlog=BACKLOG)
    try:
        yield
    finally:
        server.close()
        table.stop()
        for connection in list(state.connections):
            connection.transport.abort()


def _operations_app(app: ASGIApp) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path.startswith(_HEALTH):
            await app(scope, receive, send)
        elif path == "/metrics":
            await _send_metrics(scope, send)
        else:
            await problem_reply(HTTPException(status_code=404)).send(send, request_id_of(b""))

    return answer


async def _send_metrics(scope: Scope, send: Send) -> None:
    """Sends the metrics, in the format that the scrape accepts.

    1,800 lines of them take 13 ms to write: in a thread, which gives way to the event loop.
    """
    accepted = [value.decode("latin-1") for name, value in scope["headers"] if name == b"accept"]
    encode, content_type = choose_encoder(",".join(accepted))
    text = await asyncio.to_thread(encode, REGISTRY)
    headers = [
        (b"content-type", content_type.encode()),
        (b"content-length", str(len(text)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text, "more_body": False})
