"""`make mutants`: changes code a little, one change at a time, and runs the tests that reach it.

A change that no test notices is listed at the end, and the figures of each module.
`ARGS="core.vectors*"` chooses by the names of mutants, and does those again. `ARGS="--sample 500"`
draws as many at random from all of them, the same ones each time with the same `--seed`. Without
either all that `tool.mutmut` names is changed, which takes hours. What is done stays in `mutants/`,
and is done again only where the code was changed since. The emulators are started once for all of
it.
"""

import argparse
import os
import random
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

from tests.emulators import SHARED, running, running_valkey

_ROOT = Path(__file__).parent.parent
_MUTMUT = str(Path(sys.executable).parent / "mutmut")
_NOT_RUN = "not checked"
"""How mutmut lists what it has not run."""
_NO_MUTANT = "none*"
"""Chooses nothing: mutants are made and tests assigned to them, and none is run."""


def main() -> int:
    """The exit status of mutmut."""
    parser = argparse.ArgumentParser(
        prog="tests.mutants", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("names", nargs="*", help="names of mutants, with * for any part")
    parser.add_argument("--sample", type=int, metavar="N", help="N mutants drawn from all of them")
    parser.add_argument("--seed", type=int, default=1, help="of the sample (default: 1)")
    parser.add_argument("--children", type=int, default=os.cpu_count() or 1, help="at a time")
    options = parser.parse_args()
    run = ["run", "--max-children", str(options.children)]
    with running("ministack") as ministack, running("moto") as moto, running_valkey() as valkey:
        urls = (ministack, moto, valkey)
        os.environ.update(zip(SHARED.values(), urls, strict=True))
        chosen = options.names
        if options.sample is not None:
            _mutmut(*run, _NO_MUTANT)
            names = [name for name, _ in _results()]
            chosen = random.Random(options.seed).sample(names, min(options.sample, len(names)))
        status = _mutmut(*run, *chosen)
    _report(_results(), set(chosen) if options.sample is not None else None)
    return status


def _mutmut(*arguments: str) -> int:
    return subprocess.run([_MUTMUT, *arguments], cwd=_ROOT, check=False).returncode


def _results() -> list[tuple[str, str]]:
    """Each mutant's name, and what came of it."""
    listed = subprocess.run(
        [_MUTMUT, "results", "--all", "true"],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    results = []
    for line in listed.stdout.splitlines():
        name, _, outcome = line.strip().rpartition(": ")
        results.append((name, outcome))
    return results


def _report(results: list[tuple[str, str]], chosen: set[str] | None) -> None:
    """Writes how many mutants of each module came to what, and names those that no test noticed."""
    modules: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name, outcome in results:
        if outcome == _NOT_RUN or (chosen is not None and name not in chosen):
            continue
        modules[name.rpartition(".")[0]][outcome] += 1
        if outcome != "killed":
            sys.stdout.write(f"{outcome}: {name}\n")
    for module, outcomes in sorted(modules.items()):
        figures = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
        sys.stdout.write(f"{module}: {figures}\n")
    total = sum(modules.values(), Counter[str]())
    sys.stdout.write(f"{total['killed']} of {total.total()} killed\n")


if __name__ == "__main__":
    sys.exit(main())
