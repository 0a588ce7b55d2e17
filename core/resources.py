"""The one place where clients and adapters are opened."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from core.dynamo.client import Dynamo, open_dynamo
from core.dynamo.cursors import Cursors
from core.notifications import ChangeNotifier, open_notifier
from core.object_store import ObjectStore, open_object_store
from core.queue import JobQueue, open_queue
from core.repositories.attributes import AttributeRepository
from core.repositories.builds import BuildRepository
from core.repositories.embeddings import EmbeddingRepository
from core.repositories.idempotency import IdempotencyRepository
from core.repositories.imports import ImportRepository
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
from core.usecases.imports import ImportService
from core.usecases.reports import ReportService
from core.usecases.users import UserService
from core.versions import VersionStore
from core.watermarks import Watermarks


@dataclass(frozen=True, slots=True)
class Resources:
    """All that a process of K9 works with; opened once, closed once."""

    settings: Settings
    dynamo: Dynamo
    objects: ObjectStore
    queue: JobQueue
    notifier: ChangeNotifier
    models: ModelRepository
    embeddings: EmbeddingRepository
    attributes: AttributeRepository
    builds: BuildRepository
    promotions: PromotionRepository
    verifications: VerificationRepository
    users: UserRepository
    user_deletions: UserDeletionRepository
    model_deletions: ModelDeletionRepository
    reports: ReportRepository
    idempotency: IdempotencyRepository
    imports: ImportRepository
    versions: VersionStore
    cursors: Cursors
    watermarks: Watermarks
    embedding_service: EmbeddingService
    build_service: BuildService
    import_service: ImportService
    user_service: UserService
    report_service: ReportService


@asynccontextmanager
async def open_resources(settings: Settings) -> AsyncIterator[Resources]:
    """Opens every client. None of them connects before its first use."""
    async with (
        open_dynamo(settings) as dynamo,
        open_object_store(settings) as objects,
        open_queue(settings) as queue,
        open_notifier(settings) as notifier,
    ):
        models = ModelRepository(dynamo, settings)
        embeddings = EmbeddingRepository(dynamo, settings)
        attributes = AttributeRepository(dynamo, settings)
        builds = BuildRepository(dynamo, settings)
        imports = ImportRepository(dynamo, settings)
        promotions = PromotionRepository(dynamo, builds, models, settings)
        users = UserRepository(dynamo, settings)
        reports = ReportRepository(dynamo, users, settings)
        yield Resources(
            settings=settings,
            dynamo=dynamo,
            objects=objects,
            queue=queue,
            notifier=notifier,
            models=models,
            embeddings=embeddings,
            attributes=attributes,
            builds=builds,
            promotions=promotions,
            verifications=VerificationRepository(dynamo, settings),
            users=users,
            user_deletions=UserDeletionRepository(dynamo, settings),
            model_deletions=ModelDeletionRepository(dynamo, settings),
            reports=reports,
            idempotency=IdempotencyRepository(dynamo, settings),
            imports=imports,
            versions=VersionStore(objects, settings.environment, settings.serving.cache_dir),
            cursors=Cursors(settings.cursor_keys, settings.cursor_ttl_s),
            watermarks=Watermarks(settings.cursor_keys),
            embedding_service=EmbeddingService(models, embeddings, attributes, notifier, settings),
            build_service=BuildService(models, embeddings, builds, queue),
            import_service=ImportService(models, imports, objects, queue, settings),
            user_service=UserService(users, settings.records),
            report_service=ReportService(reports, settings),
        )
