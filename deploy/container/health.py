"""The health check of a container: `python -m deploy.container.health api` or `worker`.

It asks the port for operations, which clients cannot take up, and ends with a line that says what
is wrong. Of the API the event loop answers. A worker's port is served by a thread of its own, so
there the metric of event loop delays is read as well.
"""

import os
import re
import sys
from http.client import HTTPConnection, HTTPException
from typing import Final

from core.errors import SettingsError
from core.settings import Settings

_TIMEOUT_S: Final = 3.0
_STALL_S: Final = 60.0
"""An event loop that is late by more renews no lease any more: others have taken its builds."""
_DELAY: Final = re.compile(r"^k9_event_loop_delay_longest_seconds (\S+)$", re.MULTILINE)
_OK: Final = 200


def problem_of(role: str, settings: Settings) -> str | None:
    """What is wrong with the API or the worker of this container; None if it is alive."""
    worker = role == "worker"
    if worker:
        port, variable = settings.building.worker_metrics_port, "K9_WORKER_METRICS_PORT"
    else:
        port, variable = settings.http.metrics_port, "K9_METRICS_PORT"
    if port == 0:
        return f"{variable} is 0, so there is no port to ask"
    path = "/metrics" if worker else "/health/live"
    try:
        status, body = _get(port, path)
    except (OSError, HTTPException) as error:
        return f"port {port} does not answer: {error!r}"
    if status != _OK:
        return f"{path} answers {status}"
    if worker:
        found = _DELAY.search(body)
        if found is None:
            return "the worker does not measure its event loop yet"
        if float(found[1]) > _STALL_S:
            return f"the event loop has been stalled for {float(found[1]):.0f} s"
    return None


def _get(port: int, path: str) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read().decode(errors="replace")
    finally:
        connection.close()


def main() -> int:
    """Checks the role that is named, the API by default; 0 if it is alive, else 1."""
    role = sys.argv[1] if len(sys.argv) > 1 else "api"
    if role not in {"api", "worker"}:
        sys.stderr.write(f"the role is api or worker, not {role!r}\n")
        return 1
    try:
        problem = problem_of(role, Settings.from_env(os.environ))
    except SettingsError as error:
        problem = str(error)
    if problem is not None:
        sys.stderr.write(f"{problem}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
