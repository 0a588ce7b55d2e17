"""Rows of a later release, on every emulator: each is refused as such, and left as it is."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from core.dynamo.client import Dynamo
from core.dynamo.expressions import Update, expressions, key
from core.errors import NewerFormat
from core.formats import TABLES_ROW
from core.models import BuildParameters, Model, Report, User
from core.repositories.builds import BuildRepository
from core.repositories.embeddings import EmbeddingRepository
from core.repositories.idempotency import IdempotencyRepository
from core.repositories.models import ModelRepository
from core.repositories.reports import ReportRepository
from core.repositories.users import UserRepository
from core.settings import Settings

MOMENT = "2026-11-28T00:00:00.000000Z"


async def make_newer(dynamo: Dynamo, settings: Settings, table: str, **row: str) -> None:
    """Gives a row the format of a later release, as that would."""
    await dynamo.call(
        "update_item",
        TableName=settings.table(table),
        Key=key(**row),
        **expressions(update=Update(set={"format": 2})),
    )


@asynccontextmanager
async def newer_tables(dynamo: Dynamo, settings: Settings) -> AsyncIterator[None]:
    """The tables as a later release marks them, until the end of the block."""
    await make_newer(dynamo, settings, "models", model_version=TABLES_ROW)
    try:
        yield
    finally:
        where = key(model_version=TABLES_ROW)
        await dynamo.call("delete_item", TableName=settings.table("models"), Key=where)


async def refused(call: Callable[[], Awaitable[object]]) -> None:
    """The call is refused, with what was found, what is read, and what to do."""
    with pytest.raises(NewerFormat, match=r"format 2, .* up to 1: .* Upgrade"):
        await call()


async def test_every_kind_of_row_is_refused(
    dynamo: Dynamo, settings: Settings, model: Model, users: UserRepository, builds: BuildRepository
) -> None:
    """Users, reports, builds, embeddings and idempotency records, wherever they are read."""
    user = User(uuid4().hex, MOMENT, MOMENT)
    report = Report(uuid4().hex, user.user_id, "T", MOMENT, MOMENT)
    reports = ReportRepository(dynamo, users, settings)
    embeddings = EmbeddingRepository(dynamo, settings)
    keys = IdempotencyRepository(dynamo, settings)
    await users.create_user(user)
    await reports.create_report(report)
    await embeddings.store_embedding(model, "p", bytes(8))
    build = await builds.open_build(model, BuildParameters())
    await keys.begin("user/u", "k", "fingerprint")
    for table, row in (
        ("users", {"user_id": user.user_id}),
        ("reports", {"id": report.id}),
        ("embeddings", {"product_id": "p", "model_version": model.model_version}),
        ("builds", {"build_id": build.build_id}),
        ("idempotency", {"caller": "user/u", "key": "k"}),
    ):
        await make_newer(dynamo, settings, table, **row)
    await refused(lambda: users.get_user(user.user_id))
    await refused(lambda: reports.get_report(report.id, user.user_id))
    await refused(lambda: embeddings.get_embedding(model.model_version, "p"))
    await refused(lambda: builds.get_build(build.build_id))
    await refused(lambda: keys.begin("user/u", "k", "fingerprint"))
    # Of many rows it is passed over: the workers of the later release have it.
    assert build.build_id not in {each.build_id for each in await builds.list_open()}


async def test_a_newer_model_version_hides_no_other(
    dynamo: Dynamo, settings: Settings, models: ModelRepository, model: Model
) -> None:
    """It is refused by its name, and left out of the list, which tells of it."""
    other = await models.create_model(f"b-{uuid4().hex[:12]}", 2, "cosine", 4)
    await make_newer(dynamo, settings, "models", model_version=model.model_version)
    await refused(lambda: models.get_model(model.model_version))
    names = {each.model_version for each in await models.list_models()}
    assert model.model_version not in names
    assert other.model_version in names
    assert "format 2" in models.refused[model.model_version]


async def test_newer_tables_are_refused_as_a_whole(
    dynamo: Dynamo, settings: Settings, models: ModelRepository
) -> None:
    """Until a later release has taken its mark back."""
    await models.check_tables()
    async with newer_tables(dynamo, settings):
        await refused(models.list_models)
        await refused(models.check_tables)
    await models.check_tables()
    await models.list_models()
