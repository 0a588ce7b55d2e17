"""The `k9` command. A failure is one line on standard error, and an exit status that is not 0."""

import importlib
import os
import sys
from typing import Any

import click

# Each command is a module that is imported when it is called: `k9 --help` loads none of them.
_COMMANDS = {
    "backup": ("backup", "Writes every table to a directory or a bucket."),
    "build": ("build", "Requests a build and shows its progress."),
    "deploy": ("deploy", "Deploys an environment into an AWS account."),
    "dev": ("dev", "Starts everything on this machine."),
    "doctor": ("doctor", "Examines everything that K9 depends on."),
    "import": ("imports", "Loads a file of embeddings."),
    "migrate": ("migrate", "Loads existing users, reports or embeddings."),
    "neighbors": ("neighbors", "Shows a product's nearest neighbours."),
    "rebuild": ("rebuild", "Rebuilds lost or damaged index files."),
    "restore": ("restore", "Restores tables, from a backup or as of a time."),
    "tables": ("tables", "Creates, describes and counts the tables."),
    "token": ("token", "Prints an access token of the embedded stack."),
    "verify-build": ("verify_build", "Rebuilds a build's files and compares them."),
}
_FAILED, _USAGE, _INTERRUPTED = 1, 64, 130
"""Wrong usage is the EX_USAGE of sysexits.h: 2 has a meaning of its own for some commands."""


class _Commands(click.Group):
    """Subcommands that are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"deploy.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])


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
        # click also turns EOFError into Abort, which a library raises at a damaged file's end.
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
        # The reader has closed the pipe, as `| head` does; nothing may be flushed into it at exit.
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
