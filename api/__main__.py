"""`python -m api`: one API process, until SIGTERM or SIGINT."""

import asyncio
import errno
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any, Final

# One thread a search: OpenMP's and OpenBLAS's pools read this once, when they are loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import uvloop
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from api.app import create_app
from core import telemetry
from core.errors import SettingsError
from core.settings import Http, Settings
from core.stalls import settle_memory

if TYPE_CHECKING:
    from api.app import Application

BACKLOG: Final = 1024
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

_log = telemetry.logger(__name__)


def main() -> int:
    """Runs the API; the exit status."""
    try:
        settings = Settings.from_env(os.environ)
        app = create_app(settings, started=settle_memory)
        check_port(settings.http)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    telemetry.configure_logging(level=settings.log_level, json=settings.log_json)
    return uvloop.run(serve(app, settings.http))


def check_port(http: Http) -> None:
    """Checks that the port is free: granian shares ports, and would take half of the requests.

    Raises:
        SettingsError: it is taken, or the address is not this machine's.
    """
    try:
        found = socket.getaddrinfo(http.host, http.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used: {error}"
        raise SettingsError(f"K9_PORT={http.port}: the port {reason} on {http.host}") from None


async def serve(app: "Application", http: Http) -> int:
    """Serves until a signal, then finishes what is in flight; the exit status."""
    server = Server(
        app,
        address=http.host,
        port=http.port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        websockets=False,
        backlog=BACKLOG,
        backpressure=http.connections_max,
        http1_settings=HTTP1Settings(header_read_timeout=round(http.idle_timeout_s * 1000)),
        log_enabled=False,
    )
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if stopping.is_set():  # Ctrl-C reaches the whole group, and then its leader asks as well
            return
        stopping.set()
        app.drain()
        loop.call_later(http.notice_s, server.stop)

    for number in _SIGNALS:
        loop.add_signal_handler(number, stop)
    serving = asyncio.create_task(server.serve())
    _log.info("listening", host=http.host, port=http.port)
    asked = asyncio.create_task(stopping.wait())
    await asyncio.wait({serving, asked}, return_when=asyncio.FIRST_COMPLETED)
    if app.holder.failure is not None:
        sys.stderr.write(f"the API cannot start: {app.holder.failure}\n")
        return 1
    return await _drained(serving, http, asked=stopping.is_set())


async def _drained(serving: "asyncio.Task[Any]", http: Http, *, asked: bool) -> int:
    done, _ = await asyncio.wait({serving}, timeout=http.drain_s)
    if not done:
        _log.warning("requests cut off", after_s=http.drain_s)
        os._exit(0)
    error = serving.exception()
    if error is not None or not asked:
        _log.error("the server ended by itself", exc_info=error)
        return 1
    _log.info("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
