"""An API with a proxy before each of its dependencies; nothing here counts as coverage.

Other tests run the same code, and measuring it takes a third of the time that these take.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from core.settings import Settings
from tests.faults.proxied_api import ProxiedApi, open_proxied_api
from tests.fork_server import MEASURED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Measures none of these tests in this process."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.no_cover)


@pytest.fixture(scope="module", autouse=True)
def _unmeasured() -> Iterator[None]:
    """Measures no program that these tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(MEASURED, raising=False)
        yield


@pytest.fixture
async def site(stack_settings: Settings, tmp_path: Path) -> AsyncIterator[ProxiedApi]:
    """A published index, and every dependency behind a proxy that passes all through."""
    async with open_proxied_api(stack_settings, tmp_path) as opened:
        yield opened
