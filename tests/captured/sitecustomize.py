"""Copies what a process that a test started logs; Python imports it at the start, by its name."""

import os
import re
import sys
from pathlib import Path
from typing import Any, TextIO

from secrets_of_settings import DIRECTORY, secrets_in  # type: ignore[import-not-found] # its directory is the path


def _copied(stream: TextIO, copy: TextIO) -> None:
    """Lets everything that is written to a stream be written to a file too."""
    write: Any = stream.write

    def both(text: str) -> int:
        copy.write(text)
        count: int = write(text)
        return count

    stream.write = both  # type: ignore[method-assign]


def begin(directory: Path) -> None:
    """Copies what this process logs from now on."""
    words = " ".join(word for word in sys.orig_argv[1:] if not word.startswith("-"))
    name = f"{os.getpid()}-{re.sub(r'[^A-Za-z0-9]+', '-', words)[:80]}"
    copy = (directory / f"{name}.log").open("a", encoding="utf-8", buffering=1, errors="replace")
    _copied(sys.stderr, copy)
    if sys.orig_argv[1:] in (["-m", "api"], ["-m", "worker"]):
        _copied(sys.stdout, copy)
    with (directory / f"{name}.secrets").open("w", encoding="utf-8") as noted:
        noted.writelines(f"{secret}\n" for secret in secrets_in(os.environ))


_emulator = {"tests.emulator_process", "ministack"} & set(sys.orig_argv)
if os.environ.get(DIRECTORY) and sys.stderr is not None and not _emulator:
    begin(Path(os.environ[DIRECTORY]))
