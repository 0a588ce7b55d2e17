import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cli import environment
from deploy.cli.main import run

_DEPLOY = ["deploy", "--environment", "dev"]
_POOL = ["--user-pool-id", "us-east-1_XXXXXXXXX"]
_NETWORK = ["--vpc-id", "vpc-1", "--public-subnets", "a,b"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["nothing"], 64, "No such command"),
        (["neighbors", "m", "p", "--k", "x"], 64, "not a valid integer"),
        (["import", "a.parquet"], 64, "--model"),
        (["import", "none.parquet", "--model", "m"], 1, "there is no such file"),
        (["migrate", "none.json", "--table", "users"], 1, "there is no such file"),
        (["migrate", "none.json"], 64, "--table"),
        (["migrate", "a.json", "--table", "users", "--metric", "ip"], 64, "--metric is for"),
        (["migrate", "/dev/null", "--table", "users"], 1, "is empty"),
        (["migrate", ".", "--table", "users"], 1, "is a directory; name one file in it"),
        (["import", ".", "--model", "m"], 1, "is a directory; name one file in it"),
        (["restore"], 64, "either DIRECTORY (or s3://…) or --to-time"),
        (["backup", "S3://bucket/a"], 1, "below s3://BUCKET/PREFIX"),
        (["backup", "https://bucket/a"], 1, "below s3://BUCKET/PREFIX"),
        (["backup", "s3://"], 1, "no name of a bucket"),
        (["backup", "s3://bucket/environments/dev"], 1, "choose another prefix"),
        (["backup", ""], 1, "the place of the backup is empty"),
        (["restore", ""], 1, "the place of the backup is empty"),
        (["restore", "s3://bucket/a//b"], 1, "the prefix may have"),
        (["restore", "--to-time", "yesterday"], 1, "RFC 3339"),
        (["token"], 1, "no embedded stack runs in this directory"),
        (["dev", "--port", "99999"], 64, "--port"),
        (["deploy"], 64, "--environment"),
        ([*_DEPLOY, "--dry-run"], 64, "--user-pool-id"),
        ([*_DEPLOY, *_POOL, "--vpc-id", "vpc-1"], 64, "go together"),
        ([*_DEPLOY, *_POOL, *_NETWORK, "--private-subnets", "c"], 64, "two subnets"),
        ([*_DEPLOY, *_POOL, "--parameter", "ApiSize"], 64, "NAME=VALUE"),
        ([*_DEPLOY, "--delete-data", "dev"], 64, "goes with --delete"),
        ([*_DEPLOY, "--delete", "--delete-data", "prod"], 64, "names the environment, dev"),
        ([*_DEPLOY, "--delete", "--dry-run"], 64, "--dry-run"),
    ],
)
def test_a_failure_is_one_line_and_a_status(
    arguments: list[str],
    status: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """64 for wrong usage, 1 otherwise, and never a trace."""
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert words in captured.err


def test_a_deployment_has_one_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell that is set for another one is not overruled."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("K9_ENVIRONMENT", "prod")
    assert run([*_DEPLOY, *_POOL]) == 1
    assert "K9_ENVIRONMENT is 'prod'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        *(
            "backup",
            "build",
            "deploy",
            "dev",
            "doctor",
            "import",
            "migrate",
            "neighbors",
            "rebuild",
        ),
        *("restore", "tables", "token", "verify-build"),
    ],
)
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With what it does, and exit status 0."""
    assert run([command, "--help"]) == 0
    assert "Usage: k9" in capsys.readouterr().out


def test_a_bad_setting_is_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The variable is named."""
    monkeypatch.setenv("K9_SHARDS", "many")
    assert run(["tables", "describe"]) == 64
    assert "K9_SHARDS" in capsys.readouterr().err


def test_an_api_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what to look at."""
    monkeypatch.setenv("K9_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("K9_TOKEN", "x")
    assert run(["neighbors", "m", "p"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "http://127.0.0.1:9 does not answer" in error


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("K9_TOKEN", "abc.def\n", "K9_TOKEN has a line break, at position 8 of 8"),
        ("K9_TOKEN", "abc\r\nX-Other: 1", "K9_TOKEN has a line break, at position 4"),
        ("K9_TOKEN", "Bearer abc", "K9_TOKEN begins with 'Bearer': set it to the token alone"),
        (
            "K9_TOKEN",
            "abc\u00e9",
            "K9_TOKEN has a character that tokens cannot have, at position 4",
        ),
        ("K9_URL", "localhost:3001", "has no scheme: set it to http://localhost:3001"),
        ("K9_URL", "//k9.example", "has no scheme: set it to http://k9.example"),
        ("K9_URL", "ftp://k9.example", "is not an http or https address"),
        ("K9_URL", "http://", "is not an http or https address"),
        ("K9_URL", "http://k9.example:99999", "K9_URL is not a valid URL"),
        ("K9_URL", "http://k9.example\n", "is not a base address"),
        ("K9_URL", "http://ada:secret@k9.example", "K9_URL has a user or password"),
    ],
)
def test_variables_that_cannot_be_used_are_named(
    name: str,
    value: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With what is wrong and what to set; a token or a password is not shown."""
    monkeypatch.setenv("K9_URL", "http://127.0.0.1:9")
    monkeypatch.setenv(name, value)
    assert run(["neighbors", "m", "p"]) == 64
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error
    assert "abc" not in error
    assert "secret" not in error


@pytest.mark.parametrize(("error", "status"), [(EOFError("cut"), 1), (KeyboardInterrupt(), 130)])
def test_an_end_of_file_is_no_interruption(
    error: BaseException,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is a failure and says so, though click takes both for a user who left."""

    def failing() -> None:
        raise error

    monkeypatch.setattr(environment, "enter", failing)
    assert run(["token"]) == status
    said = capsys.readouterr().err.strip()
    assert said.startswith("k9: EOFError: cut" if status == 1 else "")


def test_help_loads_no_heavy_library() -> None:
    """`k9 --help` is at once: it neither opens a client nor reads numpy."""
    code = (
        "import sys; from deploy.cli.main import run; run(['--help']); "
        "print(sorted({'numpy', 'aioboto3', 'rich', 'aiohttp'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert shown.stdout.endswith("[]\n")
