"""A process that dies in the middle of a write: one effect, and one answer to all retries."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.api.conftest import Service
from tests.api.dying import Dying
from tests.api.people import Person, person, same
from tests.api.serving import assert_problem, own_model, path_of, vector
from tests.api.writes import Prepare, every_write, publish, send, state, store_batch


@pytest.fixture(scope="module", autouse=True)
async def _published(service: Service) -> None:
    """Has the build that is promoted."""
    await publish(service)


@pytest.fixture
async def ada(service: Service) -> AsyncIterator[Person]:
    """An operator of this test's own."""
    async with person(service, "operators") as caller:
        yield caller


@pytest.fixture
async def model(service: Service) -> AsyncIterator[str]:
    """A model version of this test's own."""
    async with own_model(service.resources) as name:
        yield name


@pytest.fixture
def dying(service: Service, monkeypatch: pytest.MonkeyPatch) -> Dying:
    """A process that may die."""
    return Dying(service, monkeypatch)


@every_write
async def test_a_crash_after_the_claim(
    ada: Person, model: str, dying: Dying, prepare: Prepare, status: int
) -> None:
    """Nothing has happened; the key is blocked for its lease, and then does its work once."""
    write = await prepare(ada, model)
    before = await state(ada, model)
    dying.at(1, done=False)
    assert_problem(await send(ada, write), 503)
    dying.risen()
    assert await state(ada, model) == before
    assert_problem(await send(ada, write), 409, "in-flight")
    assert_problem(await send(ada, ("PUT", "/models/m/embeddings/x", {})), 422, "key-reused")
    dying.lease_ends()
    first = await send(ada, write)
    assert first.status_code == status, first.text
    after = await state(ada, model)
    same(first, await send(ada, write))
    assert await state(ada, model) == after


@every_write
async def test_a_crash_after_the_effect(
    ada: Person, model: str, dying: Dying, prepare: Prepare, status: int
) -> None:
    """It has happened, with its answer, which is given from then on; it never happens again."""
    write = await prepare(ada, model)
    dying.at(3 if "batch" in write[1] else 1, done=True)
    assert_problem(await send(ada, write), 503)
    dying.risen()
    after = await state(ada, model)
    if "batch" in write[1]:  # of many transactions, of which only the answer was missing
        dying.lease_ends()
    first = await send(ada, write)
    assert first.status_code == status, first.text
    assert await state(ada, model) == after
    same(first, await send(ada, write))
    assert await state(ada, model) == after


@every_write
async def test_a_server_error_is_not_kept(
    ada: Person, model: str, dying: Dying, prepare: Prepare, status: int
) -> None:
    """Where the process lives on, the key is free for the next try at once."""
    write = await prepare(ada, model)
    dying.at(1, done=False, for_good=False)
    assert_problem(await send(ada, write), 503)
    dying.risen()
    await asyncio.sleep(0.01)
    first = await send(ada, write)
    assert first.status_code == status, first.text
    same(first, await send(ada, write))


@every_write
async def test_a_retry_after_a_crash_at_any_call(
    service: Service, dying: Dying, prepare: Prepare, status: int
) -> None:
    """Whichever call of DynamoDB it died before, or after the last: one effect, one answer.

    The crash leaves nothing of the effect or all of it, and of a batch some rows, which the retry
    does not write again.
    """
    last = None
    for number in itertools.count(1):
        async with own_model(service.resources) as model, person(service, "operators") as ada:
            write = await prepare(ada, model)
            before = await state(ada, model)
            dying.at_call(last or number, done=last is not None)
            broken = await send(ada, write)
            dying.risen()
            if not dying.died:
                assert broken.status_code == status
                assert number > 2
                last = number - 1
                continue
            assert_problem(broken, 503)
            left = await state(ada, model)
            dying.lease_ends()
            first = await send(ada, write)
            assert first.status_code == status, first.text
            after = await state(ada, model)
            same(first, await send(ada, write))
            assert await state(ada, model) == after
            if "batch" in write[1]:
                assert all(row in after for row in left)
            else:
                assert left in (before, after)
            if last is not None:
                return


async def test_a_batch_that_broke_off_is_finished_and_not_done_over(
    ada: Person, model: str, dying: Dying
) -> None:
    """What was stored before is not stored again: someone may have written over it since."""
    write = await store_batch(ada, model)
    dying.at(2, done=False, for_good=False)
    problem = assert_problem(await send(ada, write), 503, "partly-stored")
    assert problem["stored"] == 99
    assert problem["unprocessed"] == [f"b{number}" for number in range(99, 250)]
    dying.risen()
    path = path_of(model, "embeddings", "b0")
    newer = vector(999).tolist()
    await ada.client.put(path, json={"vector": newer})
    await asyncio.sleep(0.01)
    first = await send(ada, write)
    assert first.json() == {"stored": 250}
    same(first, await send(ada, write))
    assert (await ada.client.get(path)).json()["vector"] == pytest.approx(newer)
    assert (await ada.client.get(path_of(model, "embeddings", "b249"))).status_code == 200


async def test_a_slow_request_loses_its_key_and_has_no_effect(
    service: Service, ada: Person, dying: Dying, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one took over after the lease; the first then finds that, and is not the second."""
    call = service.resources.dynamo.call
    slow = [True]
    stalls, goes_on = asyncio.Event(), asyncio.Event()

    async def stalling(operation: str, **parameters: Any) -> dict[str, Any]:
        if operation == "transact_write_items" and slow:
            slow.pop()
            stalls.set()
            await goes_on.wait()
        return await call(operation, **parameters)

    monkeypatch.setattr(service.resources.dynamo, "call", stalling)
    write = ("POST", "/reports", {"title": "once"})
    stalled = asyncio.create_task(send(ada, write))
    await stalls.wait()
    dying.lease_ends()
    quick = await send(ada, write)
    assert quick.status_code == 201
    goes_on.set()
    assert_problem(await stalled, 409, "in-flight")
    same(quick, await send(ada, write))
    assert len((await ada.client.get("/reports")).json()["items"]) == 1
