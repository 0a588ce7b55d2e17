"""The one place where clients and adapters are opened."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from core.dynamo.client import Dynamo, open_dynamo
from core.dynamo.cursors import Cursors
from core.notifications import ChangeNotifier, open_notifier
from core.object_store import ObjectStore, open_object_store
from core.queue import JobQueue, open_queue
from core.repositories.builds import BuildRepository
from core.repositories.embeddings import EmbeddingRepository
from core.repositories.idempotency import IdempotencyRepository
from core.repositories.model_deletions import ModelDeletionRepository
from core.repositories.models import ModelRepository
from core.repositories.promotions import PromotionRepository
from core.repositories.reports import ReportRepository
from core.repositories.user_deletions import UserDeletionRepository
from core.repositories.users import UserRepository
from core.repositories.verifications import VerificationRepository
from core.settings import Settings
from core.usecases.builds import BuildService
from core.usecases.embeddings import EmbeddingService
from core.usecases.reports import ReportService
from core.usecases.users import UserService
from core.versions import VersionStore
from core.watermarks import Watermarks


class Resources:
    """All that a process of K9 works with; opened once, closed once."""

    def __init__(
        self,
        settings: Settings,
        dynamo: Dynamo,
        objects: ObjectStore,
        queue: JobQueue,
        notifier: ChangeNotifier,
    ) -> None:
        self.settings = settings
        self.dynamo = dynamo
        self.objects = objects
        self.queue = queue
        self.notifier = notifier
        self.models = ModelRepository(dynamo, settings)
        self.embeddings = EmbeddingRepository(dynamo, settings)
        self.builds = BuildRepository(dynamo, settings)
        self.promotions = PromotionRepository(dynamo, self.builds, self.models, settings)
        self.verifications = VerificationRepository(dynamo, settings)
        self.users = UserRepository(dynamo, settings)
        self.user_deletions = UserDeletionRepository(dynamo, settings)
        self.model_deletions = ModelDeletionRepository(dynamo, settings)
        self.reports = ReportRepository(dynamo, self.users, settings)
        self.idempotency = IdempotencyRepository(dynamo, settings)
        self.versions = VersionStore(objects, settings.environment, settings.serving.cache_dir)
        self.cursors = Cursors(settings.cursor_keys, settings.cursor_ttl_s)
        self.watermarks = Watermarks(settings.cursor_keys)
        self.embedding_service = EmbeddingService(self.models, self.embeddings, notifier, settings)
        self.build_service = BuildService(self.models, self.embeddings, self.builds, queue)
        self.user_service = UserService(self.users, settings.records)
        self.report_service = ReportService(self.reports, settings)


@asynccontextmanager
async def open_resources(settings: Settings) -> AsyncIterator[Resources]:
    """Opens every client. None of them connects before its first use."""
    async with (
        open_dynamo(settings) as dynamo,
        open_object_store(settings) as objects,
        open_queue(settings) as queue,
        open_notifier(settings) as notifier,
    ):
        yield Resources(settings, dynamo, objects, queue, notifier)
