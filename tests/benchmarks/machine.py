"""What a benchmark ran on: the machine, versions, and how busy it was."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

_PACKAGES: Final = ("faiss-cpu", "numpy", "uvloop", "litestar")
_ROOT: Final = Path(__file__).parents[2]


class Machine(msgspec.Struct, frozen=True):
    """A machine, and what is installed on it."""

    processor: str
    cores: int
    """That this process may use."""
    memory_bytes: int
    kernel: str
    versions: dict[str, str]
    """Python's and the packages'."""


def machine() -> Machine:
    """This one."""
    return Machine(
        processor=_field("/proc/cpuinfo", "model name") or platform.processor() or "unknown",
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        versions={"Python": platform.python_version()}
        | {name: version(name) for name in _PACKAGES},
    )


def describe(found: Machine) -> list[str]:
    """A line for the machine, and one for what is installed."""
    memory = f"{found.memory_bytes / 2**30:.1f} GiB"
    return [
        f"{found.processor}, {found.cores} cores, {memory}, kernel {found.kernel}",
        ", ".join(f"{name} {which}" for name, which in found.versions.items()),
    ]


def commit() -> str:
    """The commit of this checkout, and whether files differ from it; "unknown" outside git."""
    head = _git("rev-parse", "--short=12", "HEAD")
    if not head:
        return "unknown"
    return f"{head} with changes" if _git("status", "--porcelain") else head


def load() -> float:
    """Processes that ran or waited for a core, on average over the last minute."""
    return os.getloadavg()[0]


def _field(path: str, name: str) -> str:
    """The first value of a name in a file of `name : value` lines; empty without one."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in pairs if key.strip() == name), "")


def _git(*words: str) -> str:
    """What git says; nothing where it fails, or is not there."""
    command = ["git", "--no-optional-locks", *words]
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
