"""The servers of the tests themselves: nothing is left behind."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.emulators import running

_PARENT = """
import sys
from tests.emulators import running
with running(sys.argv[1]) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


def answers(url: str) -> bool:
    """Whether something listens there."""
    host, port = url.removeprefix("http://").split(":")
    probe = f"import socket; socket.create_connection(({host!r}, {port}), 1)"
    done = subprocess.run([sys.executable, "-c", probe], check=False, capture_output=True)
    return done.returncode == 0


def test_an_emulator_ends_with_its_block() -> None:
    """After the block nothing listens, and a second one can start."""
    with running("ministack") as url:
        assert answers(url)
    assert not answers(url)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_an_emulator_ends_with_its_parent(how: signal.Signals) -> None:
    """A test run that is killed, or interrupted by Ctrl-C, leaves no emulator."""
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, "ministack"],
        cwd=Path(__file__).parent.parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().decode().strip()
        assert answers(url)
        with suppress(ProcessLookupError):
            os.kill(parent.pid, how)
    deadline = time.monotonic() + 10
    while answers(url):
        assert time.monotonic() < deadline
        time.sleep(0.1)
