"""Runs a command that ends when its parent does: `launch.py PARENT_PID COMMAND [ARGUMENT...]`.

A script of its own, by path and with nothing but the standard library, so that it costs little. It
becomes the command (exec), so pid, group and start time stay the same. Where the system cannot
signal an orphan (macOS), the next `k9 dev` finds it by its pid file.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Asks for SIGTERM at the parent's death, then becomes the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before it could be asked for
            sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - the command is the supervisor's own


if __name__ == "__main__":
    main()
