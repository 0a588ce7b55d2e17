"""A client, repositories, and a model version for each test of builds."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from core.dynamo.client import Dynamo, open_dynamo
from core.models import Model
from core.repositories.builds import BuildRepository
from core.repositories.models import ModelRepository
from core.repositories.promotions import PromotionRepository
from core.repositories.users import UserRepository
from core.settings import Settings


@pytest.fixture
async def dynamo(settings: Settings) -> AsyncIterator[Dynamo]:
    """An open client."""
    async with open_dynamo(settings) as client:
        yield client


@pytest.fixture
def users(dynamo: Dynamo, settings: Settings) -> UserRepository:
    """The repository under test, or the users that reports belong to."""
    return UserRepository(dynamo, settings)


@pytest.fixture
def models(dynamo: Dynamo, settings: Settings) -> ModelRepository:
    """The repository under test."""
    return ModelRepository(dynamo, settings)


@pytest.fixture
def builds(dynamo: Dynamo, settings: Settings) -> BuildRepository:
    """The repository under test."""
    return BuildRepository(dynamo, settings)


@pytest.fixture
def promotions(
    dynamo: Dynamo, builds: BuildRepository, models: ModelRepository, settings: Settings
) -> PromotionRepository:
    """The repository under test."""
    return PromotionRepository(dynamo, builds, models, settings)


@pytest.fixture
async def model(models: ModelRepository) -> Model:
    """A model version of this test's own."""
    return await models.create_model(f"b-{uuid4().hex[:12]}", 2, "cosine", 4)
