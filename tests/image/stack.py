"""compose.yaml, as a project of its own on the engine of the test."""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final

from tests.image.engine import Engine
from tests.image.images import ROOT, TARGETS

_COMPOSE: Final = ROOT / ".venv-infra" / "bin" / "docker-compose"
_FILES: Final = (ROOT / "compose.yaml", Path(__file__).with_name("compose.yaml"))
_PROJECT: Final = "k9-image-test"
_OPTIONS: Final = [option for file in _FILES for option in ("--file", str(file))]
_FRACTION: Final = re.compile(r"\.(\d{6})\d*")


class Stack:
    """The project's containers."""

    def __init__(self, engine: Engine, port: int) -> None:
        self.engine = engine
        self._environ = {
            **engine.environ,
            "K9_IMAGE": TARGETS["k9"],
            "K9_LOCAL_IMAGE": TARGETS["local"],
            "K9_LOAD_IMAGE": TARGETS["load"],
            "K9_PORT": str(port),
        }

    def compose(
        self,
        *arguments: str,
        data: bytes | None = None,
        timeout_s: float = 600,
        check: bool = True,
        environ: dict[str, str] | None = None,
    ) -> str:
        """What a command of Compose prints.

        Raises:
            RuntimeError: it failed; with what it said.
        """
        done = subprocess.run(
            [str(_COMPOSE), "--project-name", _PROJECT, *_OPTIONS, *arguments],
            cwd=ROOT,
            env={**self._environ, **(environ or {})},
            input=data,
            capture_output=True,
            check=False,
            timeout=timeout_s,
        )
        if check and done.returncode != 0:
            said = (done.stderr + done.stdout).decode(errors="replace").strip()
            raise RuntimeError(f"docker compose {' '.join(arguments[:4])}: {said[-2000:]}")
        return done.stdout.decode(errors="replace")

    def k9(self, *arguments: str, data: bytes | None = None) -> str:
        """What the `k9` command prints in the first API's container."""
        return self.compose("exec", "-T", "api", "k9", *arguments, data=data)

    def containers(self, service: str) -> list[str]:
        """The ids of a service's containers, in the order of their numbers."""
        found = json.loads("[" + ",".join(self._rows(service)) + "]")
        return [row["ID"] for row in sorted(found, key=lambda row: str(row["Name"]))]

    def _rows(self, service: str) -> list[str]:
        listed = self.compose("ps", "--all", "--format", "json", service)
        return [line for line in listed.splitlines() if line.strip()]

    def url_of(self, container: str) -> str:
        """Where a container's API is reached from outside."""
        shown = self.engine.run("port", container, "3001/tcp").strip().splitlines()[0]
        return f"http://{shown}"

    def state(self, container: str) -> dict[str, Any]:
        """`State` as the engine describes a container, and `RestartCount`."""
        described = json.loads(self.engine.run("inspect", container))[0]
        return {**described["State"], "RestartCount": described["RestartCount"]}

    def logs(self, container: str) -> list[dict[str, Any]]:
        """The structured lines of a container's log."""
        done = subprocess.run(
            [self.engine.program, "logs", container],
            env=self.engine.environ,
            capture_output=True,
            check=True,
        )
        lines = (done.stdout + done.stderr).decode(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def kill(self, container: str) -> float:
        """Kills what runs in a container; seconds until it is healthy again by itself."""
        restarts = self.state(container)["RestartCount"]
        began = monotonic()
        # Not `docker kill`, after which the engine leaves a container as it is.
        self.engine.run("exec", container, "sh", "-c", "kill -9 -1", check=False)

        def recovered() -> bool:
            state = self.state(container)
            healthy: bool = state.get("Health", {}).get("Status") == "healthy"
            return healthy and int(state["RestartCount"]) > restarts

        wait_for(recovered, f"{container} to recover")
        return monotonic() - began

    def stop(self, container: str) -> float:
        """`docker stop`; seconds that it took.

        Raises:
            AssertionError: the container did not end by itself.
        """
        began = monotonic()
        self.engine.run("stop", container, timeout_s=180)
        took = monotonic() - began
        code = self.state(container)["ExitCode"]
        assert code == 0, f"the container ended with {code}, {took:.1f} s after SIGTERM"
        return took

    def start_seconds(self, container: str, event: str) -> float:
        """From the start of a container to a line of its log."""
        began = _time(self.state(container)["StartedAt"])
        line = next(line for line in self.logs(container) if line["event"] == event)
        return _time(line["timestamp"]) - began


def _time(text: str) -> float:
    return datetime.fromisoformat(_FRACTION.sub(r".\1", text)).timestamp()


def wait_for(condition: Any, what: str, timeout_s: float = 180.0) -> None:
    """Waits until a condition holds, and asks twice a second.

    Raises:
        TimeoutError: it does not in time.
    """
    deadline = monotonic() + timeout_s
    while not condition():
        if monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:.0f} s for {what}")
        sleep(0.5)


@contextmanager
def stack(engine: Engine, port: int) -> Iterator[Stack]:
    """The project, whose log is shown where the test fails; at the end all of it is removed."""
    project = Stack(engine, port)
    try:
        yield project
    except Exception:
        print(project.compose("ps", "--all", check=False), flush=True)
        services = ["aws", "setup", "api", "worker", "sample"]
        print(project.compose("logs", "--tail", "30", *services, check=False), flush=True)
        raise
    finally:
        project.compose(
            "--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "30"
        )
