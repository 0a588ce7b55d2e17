"""Strangers and foreign pages get nothing of the embedded stack that `k9 dev` runs."""

import asyncio
import contextlib
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from deploy.local.files import read_stack
from tests.e2e.dev import running_dev
from tests.faults import browser
from tests.faults.attempts import Target, try_all
from tests.faults.origins import try_browser

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
async def target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    """A whole `k9 dev`, with tables and a bucket and no rows."""
    directory = tmp_path_factory.mktemp("origins")
    async with running_dev(directory, "--empty") as dev:
        await dev.until("ready in")
        stack = read_stack(directory / ".k9")
        assert stack is not None
        yield Target.of(stack, directory / ".k9")


async def test_no_client_without_the_owners_keys_comes_through(target: Target) -> None:
    """Unsigned, wrongly signed, from a foreign origin or name, with a URL that was handed on."""
    tried = await asyncio.to_thread(try_all, target)
    assert len(tried) > 30
    assert [(name, through) for name, through in tried if through is not None] == []


@pytest.mark.skipif(browser.chromium() is None, reason="no Chromium is installed")
async def test_no_page_in_chromium_comes_through(target: Target, tmp_path: Path) -> None:
    """With a preflight, without one, by a web socket and by DNS rebinding."""
    tried = await try_browser(target, tmp_path)
    assert len(tried) > 10
    assert [(name, through) for name, through in tried if through is not None] == []


async def test_no_other_user_reads_the_data(target: Target) -> None:
    """Neither its directory nor a file that holds a secret, a key or a row; nor a command's words.

    The environment of a process is its owner's alone, its command is not.
    """
    data = target.secrets_file.parent
    assert data.stat().st_mode & 0o777 == 0o700
    files = [path for path in data.rglob("*") if path.is_file()]
    assert {"secrets.json", "stack.json", "valkey.conf"} <= {path.name for path in files}
    assert [path for path in files if stat.S_IMODE(path.stat().st_mode) & 0o077] == []
    logged = b"".join(path.read_bytes() for path in files if path.parent.name == "logs")
    assert logged
    assert not any(secret.encode() in logged for secret in target.secrets)
    commands = list(_commands())
    assert any(b"deploy.local.gateway" in command for command in commands)
    for secret in target.secrets:
        assert not any(secret.encode() in command for command in commands)


def _commands() -> Iterator[bytes]:
    """The words of every command that runs on this machine."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes()
