"""Runs a command that gets SIGTERM when its parent dies: `launch.py PARENT_PID COMMAND…`.

It imports nothing but the standard library, so it starts fast. It becomes the command by exec, so
pid, group and start time stay the same. On systems without that signal (macOS) it does nothing
else; see `processes`.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Requests SIGTERM at the parent's death, then becomes the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the request
            sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - the command is the supervisor's own


if __name__ == "__main__":
    main()
