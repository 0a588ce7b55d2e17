"""`make mutants`: changes code a little, one change at a time, and runs the tests that reach it.

A change that no test notices is listed at the end. `ARGS="core.vectors*"` chooses by the names of
mutants; without it all that `tool.mutmut` names is changed, which takes hours. What is done stays
in `mutants/`, and is done again only where the code was changed since. The emulators are started
once for all of it.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.emulators import SHARED, running, running_valkey

_ROOT = Path(__file__).parent.parent


def main() -> int:
    """The exit status of mutmut."""
    mutmut = shutil.which("mutmut", path=str(Path(sys.executable).parent))
    assert mutmut is not None, "mutmut is not installed: use `make mutants`"
    with running("ministack") as ministack, running("moto") as moto, running_valkey() as valkey:
        urls = (ministack, moto, valkey)
        environ = os.environ | dict(zip(SHARED.values(), urls, strict=True))
        done = subprocess.run(
            [mutmut, "run", "--max-children", str(os.cpu_count() or 1), *sys.argv[1:]],
            cwd=_ROOT,
            env=environ,
            check=False,
        )
    subprocess.run([mutmut, "results"], cwd=_ROOT, check=False)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
