"""The `k9` command. A failure is one line on standard error, and an exit status that is not 0."""

import importlib
import os
import sys
from typing import Any

import click

# A module a command, imported when it is called: `k9 --help` has no use for any of them.
_COMMANDS = {
    "backup": "deploy.cli.backup",
    "build": "deploy.cli.build",
    "dev": "deploy.cli.dev",
    "import": "deploy.cli.imports",
    "migrate": "deploy.cli.migrate",
    "neighbors": "deploy.cli.neighbors",
    "rebuild": "deploy.cli.rebuild",
    "restore": "deploy.cli.restore",
    "tables": "deploy.cli.tables",
    "token": "deploy.cli.token",
    "verify-build": "deploy.cli.verify_build",
}
_SHORT = {
    "backup": "Writes every table to files.",
    "build": "Requests a build and shows its progress.",
    "dev": "Starts everything on this machine.",
    "import": "Loads a file of embeddings.",
    "migrate": "Loads existing users, reports or embeddings.",
    "neighbors": "Shows a product's nearest neighbours.",
    "rebuild": "Makes lost or damaged index files again.",
    "restore": "Brings tables back, from files or as of a time.",
    "tables": "Creates, describes and counts the tables.",
    "token": "Prints an access token of the embedded stack.",
    "verify-build": "Makes a build's files again and compares them.",
}
_FAILED, _USAGE, _INTERRUPTED = 1, 64, 130
"""Wrong usage is the EX_USAGE of sysexits.h: 2 has a meaning of its own for some commands."""


class _Commands(click.Group):
    """Subcommands that are imported late."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(_COMMANDS[cmd_name]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_SHORT.items()))


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="k9", message="%(prog)s %(version)s")
def k9() -> None:
    """Product embeddings in, nearest neighbours out."""


def run(arguments: list[str] | None = None) -> int:
    """Runs one command; its exit status: 0, 1 for a failure, 64 for wrong usage, 130 for Ctrl-C."""
    try:
        result: Any = k9.main(args=arguments, prog_name="k9", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return _USAGE
    except click.ClickException as error:
        usage = isinstance(error, click.UsageError)
        return _say(error.format_message(), _USAGE if usage else _FAILED)
    except click.Abort as abort:
        # click makes one of EOFError too, which a library raises at the end of a damaged file.
        cause = abort.__cause__ or abort.__context__
        return _failed(cause) if isinstance(cause, EOFError) else _INTERRUPTED
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Exception as error:  # noqa: BLE001 - a trace is for developers, on request
        return _failed(error)
    return result if isinstance(result, int) else 0


def _failed(error: Exception) -> int:
    from core.errors import K9Error, SettingsError  # noqa: PLC0415
    from deploy.errors import CommandError  # noqa: PLC0415

    if os.environ.get("K9_TRACE"):
        raise error
    if isinstance(error, BrokenPipeError):
        # Whoever read this has gone, as `| head` does; and nothing may be flushed into it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    if isinstance(error, SettingsError):
        return _say(str(error), _USAGE)
    if isinstance(error, CommandError):
        return _say(str(error), error.exit_status)
    if isinstance(error, K9Error):
        return _say(str(error), _FAILED)
    return _say(f"{type(error).__name__}: {error} (K9_TRACE=1 shows where)", _FAILED)


def _say(line: str, status: int) -> int:
    click.echo(f"k9: {' '.join(line.split())}", err=True)
    return status


def main() -> None:
    """The entry point."""
    sys.exit(run())
