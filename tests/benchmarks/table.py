"""Every figure of speed by its own command, and one table and one plot of them all.

    python -m tests.benchmarks.table --file CATALOGUE.parquet --to DIRECTORY [--only NAME,...]
        [--quick] [--chroma ENVIRONMENT/bin/chroma]

As `make table ARGS="--file ..."`, which installs what the plot needs. Runs the benchmarks one after
the other, each as a process of its own. What they print is shown, and kept in `NAME.log` of the
directory; what they recorded is kept in `NAME.json`, with the load of the machine before and after.
After each of them `table.md` and `table.svg` are written anew from all that the directory has: with
`--only` some are measured again, and the rest stays. `--quick` takes few rows and turns: it shows
that all of it runs, and its figures mean nothing.

A benchmark that fails is named in the table, and the others go on. Exits with 1 where one of those
that ran failed, or did not reach a target.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from core.models import now, timestamp
from tests.benchmarks.arguments import existing
from tests.benchmarks.figures import FILE, read_figures
from tests.benchmarks.machine import commit, load, machine
from tests.benchmarks.plots import plot_targets
from tests.benchmarks.results import Result, markdown

ROOT: Final = Path(__file__).parents[2]


def commands(file: Path, chroma: Path | None, *, quick: bool) -> dict[str, list[str]]:
    """Name of a benchmark, which is its module's, → its arguments."""
    rows = ["--rows", "8000" if quick else "100000"]
    turns = ["--turns", "1" if quick else "5"]
    rounds = ["--rounds", "1" if quick else "5"]
    served = ["--file", str(file), *rows, *turns]
    seconds = ["--seconds", "1" if quick else "3"]
    found = {
        "http_search": [*served, *seconds],
        "processes": [*served, *seconds, "--processes", "1,2,4"],
        "starting": served,
        "build": ["--catalogue", str(file), *rows, *turns, "--whole"],
        "pull": [*rows, *rounds],
        "calls": ["--calls", "200" if quick else "2000", "--rounds", "1" if quick else "7"],
        "importing": ["--rows", "2000" if quick else "50000", *rounds],
        "layouts": [],
        "decode": [],
    }
    if chroma is not None:
        found["chroma"] = [*served, *seconds, "--chroma", str(chroma)]
    return found


def run(name: str, arguments: list[str], directory: Path) -> Result:
    """Runs a benchmark; its figures, as far as it came."""
    recorded = directory / f"{name}.figures"
    recorded.unlink(missing_ok=True)
    words = ["-m", f"tests.benchmarks.{name}", *arguments]
    load_before, began_at, began = load(), timestamp(now()), time.perf_counter()
    print(f"--- python {' '.join(words)}", flush=True)
    with (
        (directory / f"{name}.log").open("w", encoding="utf-8") as log,
        subprocess.Popen(
            [sys.executable, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {FILE: str(recorded)},
            cwd=ROOT,
            text=True,
            errors="replace",
        ) as process,
    ):
        for line in process.stdout or ():
            print(line, end="", flush=True)
            log.write(line)
    figures, ended = read_figures(recorded)
    recorded.unlink(missing_ok=True)
    return Result(
        name=name,
        command=f"python {' '.join(_without_folder(word) for word in words)}",
        began_at=began_at,
        seconds=time.perf_counter() - began,
        status=process.returncode,
        ended=ended,
        figures=figures,
        load_before=load_before,
        load_after=load(),
        machine=machine(),
        commit=commit(),
    )


def _without_folder(word: str) -> str:
    """A word of a command as the table has it, which is read on other machines."""
    return Path(word).name if word.startswith("/") else word


def write(directory: Path, names: list[str]) -> None:
    """The table and the plot of all results in a directory."""
    kept = [directory / f"{name}.json" for name in names]
    results = [msgspec.json.decode(p.read_bytes(), type=Result) for p in kept if p.exists()]
    (directory / "table.md").write_text(markdown(results), encoding="utf-8")
    plot_targets(
        [figure for result in results for figure in result.figures], directory / "table.svg"
    )


def main() -> int:
    """Runs what was asked for; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--file", type=existing, required=True, help="a catalogue as Parquet")
    parser.add_argument("--to", type=Path, required=True, help="a directory for what was measured")
    parser.add_argument("--only", help="names of benchmarks, with commas")
    parser.add_argument("--quick", action="store_true", help="few rows and turns")
    parser.add_argument("--chroma", type=existing, help="its command, to be measured too")
    given = parser.parse_args()
    known = commands(given.file, given.chroma, quick=given.quick)
    names = given.only.split(",") if given.only else list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"there is no benchmark {', '.join(unknown)}: there are {', '.join(known)}")
    given.to.mkdir(parents=True, exist_ok=True)
    good = True
    for name in names:
        result = run(name, known[name], given.to)
        (given.to / f"{name}.json").write_bytes(msgspec.json.encode(result))
        write(given.to, [*known, *({"chroma"} - known.keys())])
        good &= result.good
        print(f"--- {name}: {'good' if result.good else 'NOT GOOD'}", flush=True)
    print(given.to / "table.md")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
