"""`k9 doctor`."""

import os
from typing import TYPE_CHECKING

import click

from core.errors import SettingsError
from deploy.cli import environment
from deploy.errors import CommandError

if TYPE_CHECKING:  # it imports the clients
    from deploy.doctor.report import Process, Report

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "bright_black"}


@click.command("doctor")
@click.option(
    "--calls",
    type=click.IntRange(0, 10_000),
    default=100,
    show_default=True,
    help="How often a put, a get and a query are timed each; 0: not at all.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=1, max=3600),
    default=60.0,
    show_default=True,
    help="Seconds for the examination of one dependency; all are examined side by side.",
)
@click.option(
    "--process",
    type=click.Choice(["api", "worker"]),
    help="Whose rights to examine, with that process's own role; by default those of both.",
)
@click.option("--json", "as_json", is_flag=True, help="Prints one JSON object.")
@environment.async_command
async def command(
    calls: int, timeout_s: float, process: "Process | None", *, as_json: bool
) -> None:
    """Examines everything that K9 depends on, and says what to do about what is wrong.

    That is: credentials, clock, tables, indexes, safeguards, rights, latency of DynamoDB, bucket,
    Redis, token keys, and the limits of this machine. Run it with the settings and the role of the
    process in question. Users' data is not touched: the row and the object that it writes are its
    own, and are deleted. The exit status is 1 if a check failed.
    """
    import msgspec  # noqa: PLC0415 - `k9 --help` answers at once

    report = await _examine(calls, timeout_s, process)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        _print(report)
    if report.failed:
        names = ", ".join(check.name for check in report.failed)
        raise CommandError(f"{len(report.failed)} of {len(report.checks)} checks failed: {names}")


async def _examine(calls: int, timeout_s: float, process: "Process | None") -> "Report":
    from deploy.doctor.examination import examine  # noqa: PLC0415
    from deploy.doctor.report import Report, failed  # noqa: PLC0415

    try:
        settings, _ = environment.enter()
    except (SettingsError, CommandError) as error:
        check = failed("settings", str(error), "correct it; nothing else was examined")
        return Report(os.environ.get("K9_ENVIRONMENT", ""), [check])
    environment.quiet_logs()
    return await examine(settings, calls=calls, timeout_s=timeout_s, process=process)


def _print(report: "Report") -> None:
    for check in report.checks:
        status = click.style(f"{check.status:8}", fg=_COLOURS[check.status])
        click.echo(f"{status} {check.name}: {' '.join(check.detail.split())}")
        if check.advice:
            click.echo(f"         → {check.advice}")
