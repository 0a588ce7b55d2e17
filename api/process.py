"""An API process from its start until SIGTERM or SIGINT, alone on its port or one of several."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Final

import structlog
import uvloop

from api import metrics
from api.app import create_app
from api.entrypoint import Entrypoint
from api.server.connections import trusted_networks
from api.server.gate import Gate
from api.server.listener import (
    Server,
    listening,
    operations,
    operations_app,
    operations_socket,
    own_socket,
    reserved_socket,
)
from api.server.siblings import ProcessMetrics
from api.supervisor import Place, Supervisor
from core import telemetry, tracing
from core.errors import SettingsError
from core.settings import Http, Settings
from core.stalls import freeze_memory

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

_SWITCH_INTERVAL_S: Final = 0.0005
"""After which a thread gives the GIL to the event loop; Python's default is 0.005."""

_LOADING_S: Final = 30.0
"""How long one of several processes waits for its indexes before it accepts requests."""

_log = telemetry.logger(__name__)


def main() -> int:
    """Runs the API; the exit status."""
    try:
        settings = Settings.from_env(os.environ)
        trusted_networks(settings.http)
        app = create_app(settings, started=freeze_memory)
        bound = reserved_socket(settings.http)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    telemetry.configure_logging(level=settings.log_level, json=settings.log_json)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    place = None
    if settings.http.api_processes > 1:
        supervised = Supervisor(settings.http, bound, operations_socket(settings.http)).run()
        if isinstance(supervised, int):
            return supervised
        place = _take(supervised, app)
        try:
            bound = own_socket(settings.http, bound)
        except SettingsError as error:
            sys.stderr.write(f"{error}\n")
            return 1
    with bound, tracing.open_tracing("k9-api", os.environ):
        return uvloop.run(serve(app, settings.http, bound, place))


def _take(place: Place, app: Entrypoint) -> Place:
    """Begins as one of several processes."""
    structlog.contextvars.bind_contextvars(process=place.number)
    metrics.RESTARTS.inc(place.restarts)
    if not place.alone:  # the others answer until the indexes are loaded here
        app.loading_s = _LOADING_S
    return place


async def serve(
    app: Entrypoint, http: Http, bound: socket.socket, place: Place | None = None
) -> int:
    """Serves until a signal, then finishes what is in flight; the exit status.

    One of several processes also stops when their parent has died.
    """
    started = asyncio.Event()
    stopping = asyncio.Event()
    gate = Gate(http, app.caller_of)
    server = Server(app, http, started=started.set, gate=gate)
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
    if place is not None:
        _follow_parent(loop, place, stop)
    serving = asyncio.create_task(server.serve([bound]))
    starting = asyncio.create_task(started.wait())
    asked = asyncio.create_task(stopping.wait())
    await asyncio.wait({serving, starting, asked}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done() and not stopping.is_set():
        return _not_started(app, serving)
    async with _operations(app, http, place) if started.is_set() else nullcontext():
        _log.info("listening", host=http.host, port=http.port)
        if place is not None and started.is_set():
            os.write(place.started, b"1")
        await asyncio.wait({serving, asked}, return_when=asyncio.FIRST_COMPLETED)
        return await _drained(serving, http, asked=stopping.is_set())


def _follow_parent(loop: asyncio.AbstractEventLoop, place: Place, stop: Callable[[], None]) -> None:
    """Stops as by a signal once the pipe of the parent ends."""

    def ended() -> None:
        loop.remove_reader(place.parent)
        _log.warning("the parent has died")
        stop()

    loop.add_reader(place.parent, ended)


@asynccontextmanager
async def _operations(app: Entrypoint, http: Http, place: Place | None) -> AsyncIterator[None]:
    """The port for operations; of several processes each answers there for all of them."""
    if place is None:
        async with operations(app, http):
            yield
        return
    siblings, number = place.siblings, place.number
    try:
        async with (
            siblings.answering() as of_all,
            listening(operations_app(app, ProcessMetrics(number)), http, siblings.bind(number)),
            listening(of_all, http, place.operations),
        ):
            yield
    finally:
        siblings.leave(number)


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
