"""`python -m worker`: one worker process, until SIGTERM or SIGINT."""

import asyncio
import os
import sys

import uvloop

from core import telemetry
from core.errors import SettingsError
from core.settings import Settings
from worker.main import create_worker


def main() -> int:
    """Runs the worker; the exit status."""
    try:
        settings = Settings.from_env(os.environ)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    telemetry.configure_logging(level=settings.log_level, json=settings.log_json)
    asyncio.set_event_loop(uvloop.new_event_loop())
    create_worker(settings).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
