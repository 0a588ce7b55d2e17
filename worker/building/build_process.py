"""The process that builds a version: `python -m worker.building.build_process SPEC.json`.

`protocol` describes its input and output. Standard input must be a pipe that the parent holds open:
when it ends, the parent is gone, and this process exits.
"""

import os
import resource
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from core.errors import BuildFailed, Corrupt, EmptyModel
from core.models import Progress
from worker.building.protocol import BuildFailure, BuildSpec, Message, Usage
from worker.building.stages import build_version

EXIT_FAILED: Final = 1
EXIT_ORPHANED: Final = 3
_BYTES_PER_KIB: Final = 1024
_STATUS: Final = Path("/proc/self/status")
_SPEC: Final = msgspec.json.Decoder(BuildSpec)


def main(arguments: list[str]) -> int:
    """Builds what the named file specifies; returns the exit status."""
    threading.Thread(target=_exit_with_parent, name="parent", daemon=True).start()
    stream = _reserve_stdout()

    def send(message: Message) -> None:
        stream.write(msgspec.json.encode(message) + b"\n")
        stream.flush()

    def report(progress: Progress) -> None:
        send(Message(progress=progress))

    spec = _SPEC.decode(Path(arguments[0]).read_bytes())
    try:
        output = build_version(spec, report)
    except (BuildFailed, EmptyModel, Corrupt, OSError, MemoryError) as error:
        send(Message(failure=_failure(error)))
        return EXIT_FAILED
    usage = Usage(time.process_time(), peak_bytes())
    send(Message(output=msgspec.structs.replace(output, usage=usage)))
    return 0


def _failure(error: Exception) -> BuildFailure:
    if isinstance(error, OSError | MemoryError):
        reason = getattr(error, "strerror", None) or "out of memory"
        traceback.print_exception(error)  # to standard error, which the worker logs
        return BuildFailure(f"the build process failed: {reason}", transient=True)
    return BuildFailure(str(error))


def _reserve_stdout() -> BinaryIO:
    """Standard output for messages alone: what libraries print there goes to standard error."""
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return stream


def _exit_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(EXIT_ORPHANED)


def peak_bytes() -> int:
    """The most memory that this process has had.

    `ru_maxrss` is at least what the process had that started this one, which Linux hands on.
    """
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * _BYTES_PER_KIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * _BYTES_PER_KIB


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
