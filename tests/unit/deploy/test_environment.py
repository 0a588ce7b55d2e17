import os
from pathlib import Path

import msgspec
import pytest

from core.files import write_atomically
from core.settings import Settings
from deploy.cli import environment
from deploy.cli.main import run
from deploy.errors import CommandError
from deploy.local.files import RunningStack, read_stack
from deploy.local.processes import identity

STACK = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:4566",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "K9_ENVIRONMENT": "dev",
    "K9_URL": "http://127.0.0.1:3001",
}


def _start(directory: Path, *, pid: int | None = None, mark: str | None = None) -> None:
    """Writes a stack file that claims to be run by this process, or another."""
    pid = os.getpid() if pid is None else pid
    stack = RunningStack(
        pid=pid,
        identity=mark or identity(pid) or "",
        environ=STACK,
        pool_id="pool",
        client_id="client",
        password="secret",
    )
    write_atomically(directory / ".k9" / "stack.json", msgspec.json.encode(stack))


def test_a_running_stack_wins_over_keys_and_profiles(tmp_path: Path) -> None:
    """Writing to a real account by accident is the worse mistake."""
    _start(tmp_path)
    environ = {
        "AWS_PROFILE": "production",
        "AWS_ACCESS_KEY_ID": "AKIAREAL",
        "AWS_SESSION_TOKEN": "real",
        "DYNAMODB_USERS_TABLE": "theirs",
        "PATH": "/bin",
    }
    assert environment.overlay(environ, tmp_path) is not None
    assert environ == {**STACK, "PATH": "/bin"}


@pytest.mark.parametrize(
    "explicit",
    [{"AWS_ENDPOINT_URL": "http://x"}, {"AWS_ENDPOINT_URL_S3": "http://x"}, {"K9_STACK": "off"}],
)
def test_an_explicit_choice_wins_over_the_stack(tmp_path: Path, explicit: dict[str, str]) -> None:
    """An address that was set, or the switch, leaves the environment as it is."""
    _start(tmp_path)
    environ = {"AWS_PROFILE": "production", **explicit}
    assert environment.overlay(environ, tmp_path) is None
    assert environ == {"AWS_PROFILE": "production", **explicit}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "AWS_ENDPOINT_URL",
            "http://x",
            "but AWS_ENDPOINT_URL overrides it: unset that, as in `env -u AWS_ENDPOINT_URL k9",
        ),
        ("AWS_ENDPOINT_URL_S3", "http://x", "but AWS_ENDPOINT_URL_S3 overrides it"),
        ("K9_STACK", "off", "K9_STACK=off makes k9 ignore the embedded stack: unset it"),
        ("K9_STACK", "/nowhere", "no embedded stack runs in /nowhere (K9_STACK)"),
    ],
)
def test_what_overrides_a_running_stack_is_named(
    name: str,
    value: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`k9 token` needs the stack; that none ran would be wrong."""
    _start(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, value)
    assert run(["token"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error


def test_an_override_is_not_blamed_where_no_stack_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To unset it would help nobody."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://x")
    assert run(["token"]) == 1
    assert "no embedded stack runs in this directory: start it" in capsys.readouterr().err


def test_another_directory_may_be_named(tmp_path: Path) -> None:
    """K9_STACK takes the data directory of a stack that runs elsewhere."""
    _start(tmp_path)
    environ = {"K9_STACK": str(tmp_path / ".k9")}
    assert environment.overlay(environ, tmp_path / "elsewhere") is not None
    assert environ["AWS_ENDPOINT_URL"] == STACK["AWS_ENDPOINT_URL"]


def test_the_file_of_a_dead_stack_is_passed_over(tmp_path: Path) -> None:
    """Neither a pid that is gone nor one that is another process's now counts."""
    _start(tmp_path, mark="of a process that started at another time")
    assert environment.overlay({}, tmp_path) is None
    _start(tmp_path, pid=2**22 + 1, mark="x")
    assert read_stack(tmp_path / ".k9") is None


def test_the_stack_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    """It holds a password."""
    _start(tmp_path)
    assert (tmp_path / ".k9" / "stack.json").stat().st_mode & 0o777 == 0o600


async def test_a_token_of_ones_own_goes_where_one_says(tmp_path: Path) -> None:
    """K9_URL and K9_TOKEN win, and another address never gets the stack's token."""
    _start(tmp_path)
    environ = {"K9_URL": "https://k9.example"}
    stack = environment.overlay(environ, tmp_path)
    settings = Settings()
    assert await environment.api_access(settings, stack, environ) == ("https://k9.example", None)
    environ["K9_TOKEN"] = "mine"
    assert await environment.api_access(settings, stack, environ) == ("https://k9.example", "mine")


@pytest.mark.parametrize(
    ("variables", "region"),
    [
        ({}, "eu-west-1"),
        ({"AWS_PROFILE": "other"}, "ap-south-1"),
        ({"AWS_PROFILE": "other", "AWS_REGION": "us-west-2"}, "us-west-2"),
        ({"AWS_DEFAULT_REGION": "us-west-1"}, "us-west-1"),
        ({"AWS_PROFILE": "without"}, "us-east-1"),
    ],
)
def test_the_region_is_that_of_the_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], region: str
) -> None:
    """Where no variable names one."""
    _configure(tmp_path, monkeypatch, variables)
    settings, _ = environment.enter()
    assert settings.aws.region == region


def test_a_profile_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line."""
    _configure(tmp_path, monkeypatch, {"AWS_PROFILE": "misspelt"})
    with pytest.raises(CommandError, match="misspelt"):
        environment.enter()


def _configure(directory: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    file = directory / "config"
    file.write_text(
        "[default]\nregion = eu-west-1\n[profile other]\nregion = ap-south-1\n[profile without]\n"
    )
    monkeypatch.chdir(directory)
    # Set first, so that what the command sets is undone.
    monkeypatch.setenv("AWS_REGION", "")
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
