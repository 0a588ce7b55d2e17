"""`make mutants`: changes code a little, one change at a time, and runs the tests that reach it.

A change that no test notices is listed at the end, and the figures of each module.
`ARGS="core.vectors*"` chooses by the names of mutants, and does those again; without it all that
`tool.mutmut` names is changed, which takes hours. What is done stays in `mutants/`, and is done
again only where the code was changed since. The emulators are started once for all of it.
"""

import os
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

from tests.emulators import SHARED, running, running_valkey

_ROOT = Path(__file__).parent.parent
_NOT_RUN = "not checked"
"""How mutmut lists what it has not run."""


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
    listed = subprocess.run(
        [mutmut, "results", "--all", "true"],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    _report(listed.stdout)
    return done.returncode


def _report(listed: str) -> None:
    """Writes how many mutants of each module came to what, and names those that no test noticed."""
    modules: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for line in listed.splitlines():
        name, _, outcome = line.strip().rpartition(": ")
        if outcome == _NOT_RUN:
            continue
        modules[name.rpartition(".")[0]][outcome] += 1
        if outcome != "killed":
            sys.stdout.write(f"{outcome}: {name}\n")
    for module, outcomes in sorted(modules.items()):
        figures = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
        sys.stdout.write(f"{module}: {figures}\n")


if __name__ == "__main__":
    sys.exit(main())
