"""Half an hour of the locust mix on a stack of its own: `python -m tests.load.soak`.

The sample catalogue is served by `k9 dev` in a new directory, under the mix of `make load`, with a
build every two minutes. Every five seconds the memory, open files and threads of API and worker are
noted. Memory is the proportional set size; its medians are compared: of the five minutes after the
warm-up, and of the last five.

Exits with 1 when a request was answered with a status that it should not have, the memory of API or
worker drifted by 2 % or more, or a process had more files or threads at the end than before.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
import msgspec

from tests.e2e.dev import Dev, environ_of_commands, running_dev

DRIFT_MAX: Final = 0.02
_EVERY_S: Final = 5.0
_PROGRAMS: Final = ("api", "worker")
_MIB: Final = 2**20


class Sample(msgspec.Struct, frozen=True):
    """One process at one moment."""

    moment: float
    memory_bytes: int
    files: int
    threads: int


def take_sample(pid: int) -> Sample:
    """What a process holds now."""
    process = Path(f"/proc/{pid}")
    rollup = (process / "smaps_rollup").read_text(encoding="ascii")
    memory = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
    return Sample(
        time.monotonic(),
        1024 * int(memory.split()[1]),
        len(list((process / "fd").iterdir())),
        len(list((process / "task").iterdir())),
    )


class Window:
    """The samples of one process in a part of the run."""

    def __init__(self, samples: Sequence[Sample], start: float, end: float) -> None:
        self._samples = [sample for sample in samples if start <= sample.moment <= end]

    @property
    def memory_bytes(self) -> float:
        """The median."""
        return statistics.median(sample.memory_bytes for sample in self._samples)

    @property
    def memory_range(self) -> str:
        """Least and most, in MiB."""
        seen = [sample.memory_bytes / _MIB for sample in self._samples]
        return f"{min(seen):.1f} to {max(seen):.1f}"

    @property
    def files(self) -> int:
        """The most open at once."""
        return max(sample.files for sample in self._samples)

    @property
    def threads(self) -> int:
        """The most at once."""
        return max(sample.threads for sample in self._samples)


@click.command()
@click.option("--minutes", type=click.FloatRange(1), default=30, show_default=True)
@click.option("--users", type=click.IntRange(2), default=8, show_default=True)
@click.option(
    "--build-every", type=click.FloatRange(1), default=120, show_default=True, help="Seconds."
)
def command(minutes: float, users: int, build_every: float) -> None:
    """Loads a stack for a long time, and tells what grew."""
    with tempfile.TemporaryDirectory(prefix="k9-soak-") as directory:
        good = asyncio.run(_run(Path(directory), minutes, users, build_every))
    sys.exit(0 if good else 1)


async def _run(directory: Path, minutes: float, users: int, build_every_s: float) -> bool:
    async with running_dev(directory) as dev:
        await dev.until("Ctrl-C stops everything")
        pids = {name: dev.parts()[name].pid for name in _PROGRAMS}
        samples: dict[str, list[Sample]] = {name: [] for name in pids}
        watching = asyncio.create_task(_watch(pids, samples))
        started = time.monotonic()
        try:
            status = await _load(directory, minutes, users, build_every_s)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        ended = time.monotonic()
        restarted = _restarted(dev, pids)
    window = (ended - started) / 6
    good = not status and not restarted
    click.echo(f"{minutes:g} minutes; warm-up and windows of {window / 60:.1f} minutes each")
    for name, seen in samples.items():
        first = Window(seen, started + window, started + 2 * window)
        last = Window(seen, ended - window, ended)
        drift = last.memory_bytes / first.memory_bytes - 1
        good &= abs(drift) < DRIFT_MAX
        good &= last.files <= first.files and last.threads <= first.threads
        click.echo(
            f"{name:7} memory {first.memory_bytes / _MIB:.1f} MiB ({first.memory_range}), at the "
            f"end {last.memory_bytes / _MIB:.1f} ({last.memory_range}): {100 * drift:+.2f} %; "
            f"files {first.files}, {last.files}; threads {first.threads}, {last.threads}"
        )
    if restarted:
        click.echo(f"started again meanwhile: {', '.join(restarted)}")
    return good


def _restarted(dev: Dev, pids: dict[str, int]) -> list[str]:
    return [name for name, part in dev.parts().items() if pids.get(name, part.pid) != part.pid]


async def _watch(pids: dict[str, int], samples: dict[str, list[Sample]]) -> None:
    while True:
        for name, pid in pids.items():
            samples[name].append(take_sample(pid))
        await asyncio.sleep(_EVERY_S)


async def _load(directory: Path, minutes: float, users: int, build_every_s: float) -> int:
    """The mix of `make load`, with builds in it; its exit status."""
    words = ["-m", "tests.load.run", "--users", str(users), "--duration", str(round(60 * minutes))]
    words += ["--build-every", str(build_every_s)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, cwd=directory, env=environ_of_commands()
    )
    return await process.wait()


if __name__ == "__main__":
    command()
