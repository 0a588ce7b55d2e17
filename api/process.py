"""One API process, until SIGTERM or SIGINT."""

import asyncio
import os
import signal
import socket
import sys
from contextlib import nullcontext
from typing import Final

import uvloop

from api.app import create_app
from api.entrypoint import Entrypoint
from api.server.connections import trusted_networks
from api.server.listener import Server, bound_socket, operations
from core import telemetry, tracing
from core.errors import SettingsError
from core.settings import Http, Settings
from core.stalls import freeze_memory

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

_SWITCH_INTERVAL_S: Final = 0.0005
"""After which a thread gives the GIL to the event loop; Python's default is 0.005."""

_log = telemetry.logger(__name__)


def main() -> int:
    """Runs the API; the exit status."""
    try:
        settings = Settings.from_env(os.environ)
        trusted_networks(settings.http)
        app = create_app(settings, started=freeze_memory)
        bound = bound_socket(settings.http, settings.http.port, "K9_PORT")
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    telemetry.configure_logging(level=settings.log_level, json=settings.log_json)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    with bound, tracing.open_tracing("k9-api", os.environ):
        return uvloop.run(serve(app, settings.http, bound))


async def serve(app: Entrypoint, http: Http, bound: socket.socket) -> int:
    """Serves until a signal, then finishes what is in flight; the exit status."""
    started = asyncio.Event()
    stopping = asyncio.Event()
    server = Server(app, http, started=started.set)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if stopping.is_set():  # Ctrl-C reaches the whole group, and then its leader asks as well
            return
        stopping.set()
        app.drain()
        server.drain()
        loop.call_later(http.notice_s, server.stop)

    for number in _SIGNALS:
        loop.add_signal_handler(number, stop)
    serving = asyncio.create_task(server.serve([bound]))
    starting = asyncio.create_task(started.wait())
    asked = asyncio.create_task(stopping.wait())
    await asyncio.wait({serving, starting, asked}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done() and not stopping.is_set():
        return _not_started(app, serving)
    async with operations(app, http) if started.is_set() else nullcontext():
        _log.info("listening", host=http.host, port=http.port)
        await asyncio.wait({serving, asked}, return_when=asyncio.FIRST_COMPLETED)
        return await _drained(serving, http, asked=stopping.is_set())


def _not_started(app: Entrypoint, serving: "asyncio.Task[None]") -> int:
    failure = app.failure or serving.exception() or "the server ended by itself"
    sys.stderr.write(f"the API cannot start: {failure}\n")
    return 1


async def _drained(serving: "asyncio.Task[None]", http: Http, *, asked: bool) -> int:
    done, _ = await asyncio.wait({serving}, timeout=http.notice_s + http.drain_s)
    if not done:
        _log.warning("requests cut off", after_s=http.drain_s)
        os._exit(0)
    error = serving.exception()
    if error is not None or not asked:
        _log.error("the server ended by itself", exc_info=error)
        return 1
    _log.info("stopped")
    return 0
