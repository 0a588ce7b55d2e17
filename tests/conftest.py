"""What all tests share: servers that start once, and an environment that no test can leave."""

import os

# As in an API process, and before numpy and FAISS read it: beside other tests further threads
# wait for a processor.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import gc
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import msgspec
import pytest

from core.settings import Settings
from tests import aws_calls, log_secrets
from tests.emulators import CREDENTIALS, create_tables, running, running_valkey, settings_for
from tests.processes import SHARED, fork_server

# How long an example takes says how busy the machine is, and nothing of the code.
hypothesis.settings.register_profile(
    "k9", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("k9")

# Tests never see the credentials, profiles or addresses of whoever runs them.
# Two are for the tests: K9_OPERATIONS, how long those that act at random go on, and RECORD.
for _name in [name for name in os.environ if name.startswith(("AWS_", "K9_", "DYNAMODB_"))]:
    if _name not in {"K9_OPERATIONS", aws_calls.RECORD}:
        del os.environ[_name]
os.environ |= CREDENTIALS | {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    # Each client would read all public certificates, 30 ms, and the emulators speak HTTP.
    "AWS_CA_BUNDLE": str(Path(__file__).with_name("ca.pem")),
}
log_secrets.begin()
aws_calls.begin()
pytest_runtest_logreport = log_secrets.pytest_runtest_logreport
pytest_sessionfinish = log_secrets.pytest_sessionfinish
pytest_terminal_summary = log_secrets.pytest_terminal_summary


def pytest_configure(config: pytest.Config) -> None:
    """Starts the fork server that processes share, while they collect the tests."""
    if config.getoption("numprocesses", None):
        os.environ[SHARED] = fork_server()


def pytest_collection_finish() -> None:
    """Leaves all modules and tests out of garbage collections, and has fewer of these."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


_LONGEST_FIRST = ("faults", "e2e", "worker", "api", "contracts", "unit")
"""Directories of tests, by how long one file of them takes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the files that take longest, so that processes that share them end together."""
    here = Path(__file__).parent
    directories = [here / name for name in _LONGEST_FIRST]

    def rank(item: pytest.Item) -> int:
        found = (at for at, each in enumerate(directories) if item.path.is_relative_to(each))
        return next(found, -1)

    items.sort(key=rank)


@pytest.fixture(scope="session")
def ministack() -> Iterator[str]:
    """The address of the emulator that `k9 dev` runs."""
    with running("ministack") as url:
        yield url


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The address of the second emulator, served one request at a time."""
    with running("moto") as url:
        yield url


@pytest.fixture(scope="session")
def valkey() -> Iterator[str]:
    """The address of a Valkey, for `redis_url`. Shared: a test uses keys of its own."""
    with running_valkey() as url:
        yield url


@pytest.fixture(scope="module", params=["ministack", "moto"])
def emulator(request: pytest.FixtureRequest) -> Settings:
    """Settings for each emulator in turn, with an environment of the module's own; no tables."""
    return settings_for(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
async def settings(emulator: Settings) -> Settings:
    """The same, with all tables and the bucket made from the template."""
    return await create_tables(emulator)


@pytest.fixture(scope="module")
async def stack_settings(ministack: str, valkey: str) -> Settings:
    """What a worker or the API needs: the first emulator with its tables, and Valkey."""
    made = await create_tables(settings_for(ministack))
    return msgspec.structs.replace(made, redis_url=valkey)
