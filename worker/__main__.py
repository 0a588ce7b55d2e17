"""`python -m worker`: one worker process, until SIGTERM or SIGINT."""

import asyncio
import os
import signal
import sys

import uvloop

from core import telemetry, tracing
from core.errors import K9Error, SettingsError
from core.queue import redis_settings
from core.settings import Settings
from worker.main import serve

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main() -> int:
    """Runs the worker; the exit status."""
    try:
        settings = Settings.from_env(os.environ)
        redis_settings(settings)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    telemetry.configure_logging(level=settings.log_level, json=settings.log_json)
    try:
        with tracing.open_tracing("k9-worker", os.environ):
            uvloop.run(_serve(settings))
    except K9Error as error:
        sys.stderr.write(f"the worker cannot start: {error}\n")
        return 1
    return 0


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop.set)
    await serve(settings, stop)


if __name__ == "__main__":
    sys.exit(main())
