"""Two users at random, side by side: neither ever sees, changes or counts what is the other's.

`K9_OPERATIONS` is how many operations each of them makes, 150 unless it is set.
"""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from api.app import create_app
from core.dynamo import tables
from core.resources import open_resources
from core.settings import Auth, Http, Serving
from tests.api.actors import Actor, Move, Together
from tests.api.late_index import LATE_S, LateIndex
from tests.api.pool import CLIENT_ID, running_pool
from tests.api.serving import client_of, started
from tests.emulators import create_tables, settings_for

T = TypeVar("T")

OPERATIONS = int(os.environ.get("K9_OPERATIONS") or 150)
STEPS = 25
"""Operations of each user in one example; each example has two users of its own."""

LETTERS = st.sampled_from(("a", "é", "🐍", '"', "\\", " x", "日本"))
WORDS = st.lists(LETTERS, min_size=1, max_size=3).map("".join)
VALUES = st.sampled_from(
    (None, True, 10**40, -(2**63) - 1, 1e-300, 1.0, "", "é", [], [[1.0], {}], {}, {"": {"a.b": ""}})
)
FIELDS = st.fixed_dictionaries(
    {"title": WORDS},
    optional={
        "author": st.none() | WORDS,
        "date": st.sampled_from((None, "2025-09-30", "0001-01-01")),
        "favorites": st.lists(LETTERS.map(str.strip), max_size=4),
    },
)
KINDS = (
    *("create", "patch", "get", "list", "guess") * 3,
    *("delete", "replay", "race_key", "race_patch", "race_version", "create_user") * 2,
    *("borrow_cursor", "race_delete", "patch_user") * 2,
    *("get_user", "leave"),
)
MOVES = st.builds(
    Move,
    kind=st.sampled_from(KINDS),
    pick=st.integers(0, 30),
    fields=FIELDS,
    preferences=st.dictionaries(st.sampled_from(("", "a", "a.b", "é")), VALUES, max_size=3),
    match=st.sampled_from(("none", "fresh", "star", "several", "stale", "weak")),
    size=st.integers(1, 4),
    keyed=st.booleans(),
)


async def at_once(*operations: Coroutine[Any, Any, Any]) -> list[Any]:
    """Runs all of them at once; the first error, once all have ended."""
    done = await asyncio.gather(*operations, return_exceptions=True)
    for one in done:
        if isinstance(one, BaseException):
            raise one
    return done


async def in_turn(*operations: Coroutine[Any, Any, Any]) -> list[Any]:
    """Runs one after the other."""
    return [await operation for operation in operations]


class World:
    """An application on an emulator, with an index that is late, in a thread of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, together: Together) -> None:
        self._loop = loop
        self.together = together
        self.stopped = asyncio.Event()
        self.late: LateIndex | None = None
        self._numbers = count()
        self._new: Any = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Has the thread do it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def two_users(self) -> tuple[Actor, Actor]:
        """Two who have never been here."""
        number = next(self._numbers)
        return await self._new(f"ada-{number}"), await self._new(f"bob-{number}")

    async def host(
        self, url: str, redis_url: str, directory: Path, ready: "asyncio.Future[None]"
    ) -> None:
        """Keeps the application open until it is told to stop."""
        try:
            async with self._opened(url, redis_url, directory):
                ready.set_result(None)
                await self.stopped.wait()
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
            raise

    @asynccontextmanager
    async def _opened(self, url: str, redis_url: str, directory: Path) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            pool = await stack.enter_async_context(running_pool())
            made = await create_tables(settings_for(url))
            auth = Auth(
                auth_issuer=pool.issuer, auth_jwks_url=pool.url, auth_client_ids=(CLIENT_ID,)
            )
            made = msgspec.structs.replace(
                made,
                redis_url=redis_url,
                auth=auth,
                http=Http(metrics_port=0),
                serving=Serving(cache_dir=directory, refresh_s=60.0),
                records=msgspec.structs.replace(made.records, deletion_settle_s=2 * LATE_S),
            )
            resources = await stack.enter_async_context(open_resources(made))
            self.late = LateIndex(resources.dynamo.call, made.table(tables.REPORTS.name))
            stack.enter_context(patch.object(resources.dynamo, "call", self.late.call))
            stack.enter_context(patch("worker.user_deletion._POLL_S", 0.01))
            app = await stack.enter_async_context(started(create_app(made, resources)))

            async def new(sub: str) -> Actor:
                client = await stack.enter_async_context(client_of(app, pool.token(sub=sub)))
                return Actor(sub, client, resources, self.together)

            self._new = new
            yield


@contextmanager
def world_on(url: str, redis_url: str, directory: Path, together: Together) -> Iterator[World]:
    """A world, whose thread ends with the block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:

        async def begun() -> tuple[World, "asyncio.Task[None]"]:
            made, ready = World(loop, together), loop.create_future()
            task = loop.create_task(made.host(url, redis_url, directory, ready))
            await ready
            return made, task

        async def ended(made: World, task: "asyncio.Task[None]") -> None:
            made.stopped.set()
            await task

        world, task = asyncio.run_coroutine_threadsafe(begun(), loop).result(60)
        yield world
        world.run(ended(world, task))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class TwoUsers(RuleBasedStateMachine):
    """Each step is an operation of each of the two, in flight together."""

    world: ClassVar[World]
    moves: ClassVar[int] = 0
    failure: ClassVar[BaseException | None] = None
    """What went wrong first: trying it again, hypothesis may meet something else."""

    def __init__(self) -> None:
        super().__init__()
        self._failed = False
        self.ada, self.bob = self.world.run(self.world.two_users())

    @rule(ada=MOVES, bob=MOVES)
    def step(self, ada: Move, bob: Move) -> None:
        """Each makes a move, and checks what comes of it for itself."""
        type(self).moves += 1
        try:
            self.world.run(self._step(ada, bob))
        except BaseException as error:
            self._failed = True
            type(self).failure = type(self).failure or error
            raise

    async def _step(self, ada: Move, bob: Move) -> None:
        await self.world.together(self.ada.act(ada, self.bob), self.bob.act(bob, self.ada))

    def teardown(self) -> None:
        """Once the index has settled, all that there is is what the models say."""
        if not self._failed:
            self.world.run(self._settled())

    async def _settled(self) -> None:
        await asyncio.sleep(LATE_S)
        for user in (self.ada, self.bob):
            await user.check()


def run_machine(world: World, operations: int) -> None:
    """Runs examples until each user has made so many operations."""

    class Machine(TwoUsers):
        """With a count and a world of its own."""

    Machine.world = world
    while Machine.moves < operations:
        examples = settings(
            max_examples=-(-(operations - Machine.moves) // STEPS),
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate,),  # what depends on timing cannot be made smaller
        )
        try:
            run_state_machine_as_test(Machine, settings=examples)
        except Exception as error:
            raise (Machine.failure or error) from error


@pytest.mark.timeout(120 + OPERATIONS)
def test_two_users_side_by_side(ministack: str, valkey: str, tmp_path: Path) -> None:
    """Operations of both in flight together, with an index that is late, against a model."""
    with world_on(ministack, valkey, tmp_path, at_once) as world:
        run_machine(world, OPERATIONS)
        assert world.late is not None
        # A few operations on a busy machine may all come after the index has caught up.
        assert world.late.hidden or OPERATIONS < 1000


def test_two_users_in_turn(moto: str, valkey: str, tmp_path: Path) -> None:
    """The same on the second emulator, one operation after the other."""
    with world_on(moto, valkey, tmp_path, in_turn) as world:
        run_machine(world, min(OPERATIONS, 25))
