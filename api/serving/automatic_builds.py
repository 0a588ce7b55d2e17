"""Builds that K9 requests by itself."""

import asyncio
from typing import Final

from api.serving.background import cancelled
from core import telemetry, tracing
from core.errors import Conflict, K9Error, NotFound
from core.models import Model
from core.resources import Resources
from core.retry import RetryPolicy

_RETRY: Final = RetryPolicy(first_s=60.0, max_s=3600.0, jitter=0.0)
"""Between requests for a model version while no new index comes of them."""

_log = telemetry.logger(__name__)


class AutomaticBuilds:
    """Requests builds in tasks."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._requests: dict[str, tuple[int, float]] = {}
        """Requests so far, and when the next may follow by the event loop's clock."""
        self._tasks: set[asyncio.Task[None]] = set()

    def reset(self, model_version: str) -> None:
        """A new index is in use: the next request need not wait."""
        self._requests.pop(model_version, None)

    def request(self, model: Model, reason: str) -> None:
        """Requests a build, unless one is open or was requested lately, or the model is pinned."""
        count, not_before = self._requests.get(model.model_version, (0, 0.0))
        now = asyncio.get_running_loop().time()
        if now < not_before or model.pinned or model.open_build_id is not None:
            return
        self._requests[model.model_version] = count + 1, now + _RETRY.delay_s(count + 1)
        task = asyncio.create_task(self._request(model.model_version, reason))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _request(self, name: str, reason: str) -> None:
        log = _log.bind(model_version=name, reason=reason)
        try:
            model = await self._resources.models.get_model(name)  # the list may lag behind
            if model.pinned or model.open_build_id is not None:
                return
            with tracing.span("automatic build", attributes={"k9.model_version": name}):
                build = await self._resources.build_service.request_automatic(name)
        except (Conflict, NotFound) as error:
            log.info("no build requested", detail=str(error))
        except K9Error as error:
            log.warning("requesting a build failed", detail=str(error))
        else:
            log.info("automatic build requested", build_id=build.build_id)

    async def aclose(self) -> None:
        """Ends its tasks."""
        await cancelled(*self._tasks)
