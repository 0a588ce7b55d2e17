"""The search of all logs for secrets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api.pool import Pool
from tests.captured.secrets_of_settings import DIRECTORY, secrets_in
from tests.emulators import CREDENTIALS, CURSOR_KEY
from tests.log_secrets import leaks

_ROOT = Path(__file__).parents[2]
SECRET = CREDENTIALS["AWS_SECRET_ACCESS_KEY"]


def test_a_secret_in_a_log_is_found() -> None:
    """A setting, or a token of any caller; the report names the place and not the secret."""
    token = Pool().token()
    for text, secret in ((f"key={SECRET}!", SECRET), (f"Authorization: Bearer {token}", token)):
        (found,) = leaks("a test", f"before\n{text}\nafter", {SECRET})
        assert found.startswith("a test: ")
        assert secret not in found
    assert not list(leaks("a test", "eyJ is no token, and test no secret", {SECRET}))


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("K9_CURSOR_KEYS", f"{CURSOR_KEY}, another-key", "another-key"),
        ("REDIS_URL", "rediss://user:pass-of-redis@host:1/0", "pass-of-redis"),
        ("AWS_SECRET_ACCESS_KEY", SECRET, SECRET),
    ],
)
def test_the_secrets_of_settings_are_known(name: str, value: str, secret: str) -> None:
    """Those of a process, and none that is too short to tell from other text."""
    assert secret in set(secrets_in({name: value}))
    assert not set(secrets_in({name: "test"}))


def test_what_a_process_logs_is_copied(tmp_path: Path) -> None:
    """With the secrets of its settings: standard error, and what it prints where it is a log."""
    environ = os.environ | {DIRECTORY: str(tmp_path)}
    code = "import sys; sys.stderr.write('logged\\n'); raise ValueError('and how it ended')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, cwd=_ROOT, check=False, capture_output=True
    )
    assert b"logged" in done.stderr
    (log,) = tmp_path.glob("*.log")
    assert "logged" in log.read_text()
    assert "and how it ended" in log.read_text()
    (secrets,) = tmp_path.glob("*.secrets")
    assert SECRET in secrets.read_text().splitlines()


def test_a_run_that_logs_a_secret_fails(tmp_path: Path) -> None:
    """In the process of the tests as in one that they start; the place is named."""
    (tmp_path / "conftest.py").write_text("from tests.conftest import *  # noqa: F403\n")
    (tmp_path / "test_it.py").write_text(
        "import os, subprocess, sys\n"
        "def test_prints():\n"
        "    print('the key is', os.environ['AWS_SECRET_ACCESS_KEY'])\n"
        "def test_starts():\n"
        "    code = 'import os, sys; sys.stderr.write(os.environ[\"AWS_SECRET_ACCESS_KEY\"])'\n"
        "    subprocess.run([sys.executable, '-c', code], capture_output=True)\n"
    )
    words = ("-m", "pytest", "-q", "-c", str(_ROOT / "pyproject.toml"), "--rootdir", str(tmp_path))
    own = {DIRECTORY, "PYTEST_XDIST_WORKER"}  # it is a run of its own
    environ = {name: value for name, value in os.environ.items() if name not in own}
    done = subprocess.run(
        [sys.executable, *words, "-p", "no:cacheprovider", str(tmp_path)],
        env=environ | {"PYTHONPATH": str(_ROOT)},
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout
    assert "2 passed" in done.stdout
    assert "test_it.py::test_prints (stdout" in done.stdout
    assert SECRET not in done.stdout
    assert done.stdout.count("a secret of settings") == 2
