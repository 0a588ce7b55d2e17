"""Requesting a build: written to the table first, then enqueued."""

from dataclasses import dataclass

from core import telemetry
from core.errors import BuildConflict, EmptyModel
from core.models import Build, BuildParameters
from core.queue import JobQueue
from core.repositories.builds import BuildRepository
from core.repositories.embeddings import EmbeddingRepository
from core.repositories.idempotency import Claim
from core.repositories.models import ModelRepository

_log = telemetry.logger(__name__)


@dataclass
class BuildService:
    """Opens builds, at most one per model version at a time."""

    models: ModelRepository
    embeddings: EmbeddingRepository
    builds: BuildRepository
    queue: JobQueue

    async def request(
        self,
        model_version: str,
        parameters: BuildParameters,
        claim: Claim | None = None,
        *,
        automatic: bool = False,
    ) -> Build:
        """Opens a build, or returns the open one if its parameters are the same.

        The transaction that opens a build completes the claim. An automatic one never replaces a
        pinned build.

        Raises:
            NotFound: there is no such model version.
            ModelBeingDeleted: it is marked for deletion.
            EmptyModel: it has no embedding.
            BuildConflict: a build with other parameters is open.
            Pinned: it is automatic, and the current build is pinned.
        """
        model = await self.models.get_model(model_version)
        if model.open_build_id is None and not await self.embeddings.has_rows(model):
            raise EmptyModel(f"{model_version} has no embeddings; store some, then build")
        build = await self.builds.open_build(model, parameters, claim, automatic=automatic)
        if build.parameters != parameters:
            raise BuildConflict(
                f"build {build.build_id} is open with other parameters; "
                "wait until it ends, or cancel it"
            )
        enqueued = await self.queue.enqueue(build.build_id, build.fence, build.trace)
        _log.info(
            "build requested",
            build_id=build.build_id,
            model_version=model_version,
            automatic=automatic,
            enqueued=enqueued,
        )
        return build

    async def request_automatic(self, model_version: str) -> Build:
        """Opens an automatic build, with the parameters of the current one.

        Raises:
            NotFound: there is no such model version.
            ModelBeingDeleted: it is marked for deletion.
            EmptyModel: it has no embedding.
            BuildConflict: a build with other parameters is open.
            Pinned: the current build is pinned.
        """
        model = await self.models.get_model(model_version)
        parameters = BuildParameters()
        if model.current_build_id is not None:
            parameters = (await self.builds.get_build(model.current_build_id)).parameters.again()
        return await self.request(model_version, parameters, automatic=True)
