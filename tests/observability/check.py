"""`python -m tests.observability.check`: rules and dashboard on a real Prometheus and a real stack.

It has promtool check the configuration and run the rules' unit tests. Then Prometheus scrapes the
API and the worker of a `k9 dev` under load, answers every query of the dashboard, and evaluates
every rule. A failure is a query that is refused or finds nothing where it must find something, and
an alert that would fire.
"""

import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import click
import msgspec

from deploy.local.files import RunningStack
from tests.e2e.dev import environ_of_commands, running_dev
from tests.observability import plot, prometheus
from tests.observability.prometheus import Prometheus
from tests.observability.queries import (
    MAY_BE_ACTIVE,
    PROMETHEUS,
    RATE_INTERVAL,
    RULE_TESTS,
    alerts,
    annotations,
    measured,
    panels,
    reason_to_be_empty,
)

_POINTS: Final = 60
"""Of each line of the picture."""


class Verdict:
    """What was found, and what is wrong."""

    def __init__(self) -> None:
        self.checked = 0
        self.empty: dict[str, str] = {}
        """Queries that found nothing, and may."""
        self.problems: list[str] = []

    def judge(self, name: str, expression: str, found: int) -> None:
        """Notes one query."""
        self.checked += 1
        if found:
            return
        why = reason_to_be_empty(expression)
        if why is None:
            self.problems.append(f"{name}: nothing found: {expression}")
        else:
            self.empty[f"{name}: {expression}"] = why


@click.command()
@click.option("--duration", type=click.IntRange(30), default=75, show_default=True, help="Seconds.")
@click.option(
    "--picture",
    type=click.Path(path_type=Path),
    default=Path("build/dashboard.svg"),
    show_default=True,
    help="Where the panels are plotted.",
)
def command(duration: int, picture: Path) -> None:
    """Runs every query of the rules and the dashboard against a stack under load."""
    for program in ("prometheus", "promtool"):
        if shutil.which(program) is None:
            raise click.ClickException(f"{program} is not installed: apt-get install prometheus")
    for arguments in (
        ("check", "config", str(PROMETHEUS / "prometheus.yml")),
        ("test", "rules", str(RULE_TESTS)),
    ):
        if subprocess.run(["promtool", *arguments], check=False).returncode:  # noqa: S607
            raise click.ClickException(f"promtool {' '.join(arguments)} failed")
    with tempfile.TemporaryDirectory(prefix="k9-observability-") as directory:
        verdict = asyncio.run(_run(Path(directory), duration, picture.absolute()))
    for name, why in verdict.empty.items():
        click.echo(f"empty, and may be: {name} ({why})")
    for problem in verdict.problems:
        click.echo(problem)
    click.echo(
        f"{verdict.checked} queries, {len(verdict.empty)} rightly empty, "
        f"{len(verdict.problems)} problems; plotted in {picture}"
    )
    sys.exit(bool(verdict.problems))


async def _run(directory: Path, duration_s: int, picture: Path) -> Verdict:
    verdict = Verdict()
    async with running_dev(directory) as dev:
        await dev.until("Ctrl-C stops everything")
        stack = msgspec.json.decode((directory / ".k9/stack.json").read_bytes(), type=RunningStack)
        config = prometheus.configure(
            directory,
            f"127.0.0.1:{stack.environ['K9_METRICS_PORT']}",
            f"127.0.0.1:{stack.environ['K9_WORKER_METRICS_PORT']}",
            "1s",
        )
        async with prometheus.running(config) as scraping:
            started = time.time()
            await _load(directory, duration_s)
            await asyncio.sleep(3)  # the last scrapes
            ended = time.time()
            await _check_panels(scraping, verdict, started, ended, picture)
            await _check_alerts(scraping, verdict)
    return verdict


async def _load(directory: Path, duration_s: int) -> None:
    """The mix of `make load`, with builds in it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.load.run",
        "--users",
        "8",
        "--duration",
        str(duration_s),
        cwd=directory,
        env=environ_of_commands(),
    )
    await process.wait()


async def _check_panels(
    scraping: Prometheus, verdict: Verdict, start: float, end: float, picture: Path
) -> None:
    drawn = []
    for panel in panels():
        answers = []
        for expression, legend in panel.queries:
            query = expression.replace(RATE_INTERVAL, "15s")
            try:
                series = await scraping.query_range(query, start, end, (end - start) / _POINTS)
            except ValueError as error:
                verdict.problems.append(f"{panel.title}: {error}")
                continue
            verdict.judge(panel.title, expression, len(series))
            answers.append((legend, series))
        drawn.append((panel, plot.lines_of(answers)))
    plot.write(picture, drawn, start, end)
    for expression in annotations():
        verdict.checked += 1
        try:
            await scraping.query(expression)  # nothing need fire
        except ValueError as error:
            verdict.problems.append(f"annotation: {error}")


async def _check_alerts(scraping: Prometheus, verdict: Verdict) -> None:
    for name, rule in alerts().items():
        try:
            await scraping.query(rule["expr"])
            verdict.judge(name, rule["expr"], await scraping.query(measured(rule["expr"])))
        except ValueError as error:
            verdict.problems.append(f"{name}: {error}")
    for rule in await scraping.rules():
        if rule["health"] != "ok":
            verdict.problems.append(f"{rule['name']}: {rule['health']} {rule.get('lastError', '')}")
        if rule["state"] != "inactive" and rule["name"] not in MAY_BE_ACTIVE:
            verdict.problems.append(f"{rule['name']} is {rule['state']}: {rule['alerts']}")


if __name__ == "__main__":
    command()
