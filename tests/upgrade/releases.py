"""The earlier release: its source from the repository's history, in an environment of its lock."""

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

import msgspec

COMMIT: Final = "23e14f8"
"""The release that ran before: its records, files and processes must go on working."""

_ROOT: Final = Path(__file__).parents[2]
_BUILD: Final = _ROOT / "build" / "upgrade"


class Release(msgspec.Struct, frozen=True):
    """A checkout, and the interpreter that has its dependencies."""

    name: str
    python: Path
    source: Path

    def command(self, module: str) -> tuple[str, ...]:
        """Runs a module of it; the working directory must be `source`."""
        return (str(self.python), "-m", module)

    @property
    def k9(self) -> tuple[str, ...]:
        """Its `k9` command."""
        return (str(self.python), "-c", "from deploy.cli.main import main; main()")


def present() -> Release:
    """The code of this checkout."""
    return Release("new", Path(sys.executable), _ROOT)


def earlier() -> Release:
    """The earlier release, prepared below `build/` unless it is there.

    Raises:
        SystemExit: the history does not have it, or a package could not be installed.
    """
    source, environment = _BUILD / COMMIT / "source", _BUILD / COMMIT / "venv"
    if not source.exists():
        _extract(source)
    lock = source / "requirements" / "runtime.txt"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    stamp = environment / ".k9-lock"
    if not stamp.exists() or stamp.read_text() != digest:
        shutil.rmtree(environment, ignore_errors=True)
        _run(sys.executable, "-m", "venv", str(environment))
        pip = (str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet")
        _run(*pip, "--disable-pip-version-check", "--no-deps", "--require-hashes", "-r", str(lock))
        stamp.write_text(digest)
    return Release("old", environment / "bin" / "python", source)


def _extract(source: Path) -> None:
    git = shutil.which("git") or sys.exit("git is needed, to read the history")
    archive = [git, "archive", "--format=tar", COMMIT]
    found = subprocess.run(archive, cwd=_ROOT, capture_output=True, check=False)
    if found.returncode:
        reason = found.stderr.decode().strip()
        sys.exit(f"{COMMIT} is not in this repository's history ({reason}): fetch all of it")
    incoming = source.with_name("source.incoming")
    shutil.rmtree(incoming, ignore_errors=True)
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as files:
        files.extractall(incoming, filter="data")
    incoming.rename(source)


def _run(*command: str) -> None:
    print(f"preparing {COMMIT}: {' '.join(command[1:4])}", flush=True)
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"the environment of {COMMIT} could not be installed")
