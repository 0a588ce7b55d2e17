"""Writes, builds, promotions, restarts of DynamoDB and S3 in any order, and reads among them.

The model of what must be visible is a history of writes for each product:

- no product goes back to an earlier state once a later one was seen, whichever build is in use;
- a read with a watermark shows that write, or is refused while DynamoDB cannot be read;
- what answers goes on answering, whatever fails;
- once nothing fails and nothing is written, what answers is the current build with all changes.
"""

import asyncio
import shutil
from collections.abc import Coroutine
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

import msgspec
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from api.serving.snapshot import Snapshot
from core.errors import NotYetVisible, Unavailable
from core.models import Embedding, Watermark
from core.vectors.arrays import Floats, prepare_one, row_scores
from tests.unit.api.serving.fakes import embedding
from tests.unit.api.serving.rig import Rig, ago, until, vector
from tests.unit.api.serving.versions import model_of
from tests.virtual_time import VirtualTimeLoop

ANY: Final = prepare_one(vector(0), "cosine")
"""What is searched for."""
PRODUCTS: Final = ("a", "b", "c", "d")
GSI_LAG_S: Final = 3.0
"""How long a write may take to be shown by the GSI."""
LOOK_S: Final = 0.1
WATERMARK_LAG_S: Final = 5.0
"""How much earlier than its pull a build's watermark is."""


class Write(msgspec.Struct, frozen=True):
    """A row as it was written, or its deletion."""

    moment: str
    vector: Floats | None
    shown_at: float
    """By the loop's clock: from then on the GSI shows it."""


class ServingMachine(RuleBasedStateMachine):
    """Serving over fakes, in a virtual time that goes on only within a step."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(mkdtemp())
        self.runner = asyncio.Runner(loop_factory=VirtualTimeLoop)
        self.history: dict[str, list[Write]] = {name: [] for name in PRODUCTS}
        self.seen = dict.fromkeys(PRODUCTS, 0)
        """How many writes of each product what answers has surely shown."""
        self.seeds = 0
        self.built: list[str] = []
        self.answered = False
        self.looked_at: Snapshot | None = None
        self.vectors: dict[str, Floats | None] = {}
        self.written = ""
        """The product that was written last."""

    def run(self, work: Coroutine[Any, Any, object]) -> None:
        """Runs a step."""
        self.runner.run(work)

    def wait_for(self, seconds: float) -> None:
        """Lets time go on, and looks at what answers all the while."""

        async def wait() -> None:
            for _ in range(round(seconds / LOOK_S)):
                await asyncio.sleep(LOOK_S)
                self.look()

        self.run(wait())

    @initialize(hard=st.sampled_from([3, 1000]))
    def start(self, hard: int) -> None:
        """Begins with a build of all; with a hard limit of changes that is reached, or not."""
        self.overflows = hard < len(PRODUCTS)

        async def begin() -> None:
            self.rig = Rig(self.root, poll_s=10.0, poll_overlap_s=6.0, delta_rows_hard=hard)
            self.rig.rows.shown_by_gsi = self.shown
            self.rig.models.models = [model_of(None)]
            self.context = self.rig.updating()
            await self.context.__aenter__()
            await asyncio.sleep(2)

        self.run(begin())
        for product_id in PRODUCTS:
            self.write(product_id=product_id, delete=False, lag_s=0.0, notified=False)
        self.wait_for(WATERMARK_LAG_S + 1)
        self.build(wait_s=2.0)
        assert self.rig.build_id == "b-1"

    def teardown(self) -> None:
        """Ends its tasks."""
        if hasattr(self, "rig"):
            self.run(self.context.__aexit__(None, None, None))
        self.runner.close()
        shutil.rmtree(self.root)

    # --- what happens ---------------------------------------------------------------------------

    @rule(
        product_id=st.sampled_from(PRODUCTS),
        delete=st.booleans(),
        lag_s=st.sampled_from([0.0, GSI_LAG_S]),
        notified=st.booleans(),
    )
    def write(self, product_id: str, *, delete: bool, lag_s: float, notified: bool) -> None:
        """A write, of which serving may be notified or not."""
        self.written = product_id

        async def write() -> None:
            await asyncio.sleep(0.01)  # no two writes are of one moment
            self.seeds += 1
            row = None if delete else vector(self.seeds)
            moment = self.rig.put(product_id, row)
            shown_at = asyncio.get_running_loop().time() + lag_s
            self.history[product_id].append(Write(moment, row, shown_at))
            if notified:
                self.rig.notifier.send(product_id)

        self.run(write())

    @rule(wait_s=st.sampled_from([0.0, 2.0]))
    def build(self, wait_s: float) -> None:
        """A build of what the GSI shows becomes current, if that is anything."""

        async def build() -> None:
            pulled = {name: last.vector for name, last in self.shown_writes().items()}
            rows = {name: row for name, row in pulled.items() if row is not None}
            if not rows:
                return
            build_id = f"b-{len(self.built) + 1}"
            self.rig.versions.add(
                build_id,
                sorted(rows),
                rows=np.stack([rows[name] for name in sorted(rows)]),
                watermark=ago(WATERMARK_LAG_S),
            )
            self.built.append(build_id)
            self.rig.models.models = [model_of(build_id)]

        self.run(build())
        self.wait_for(wait_s)

    @precondition(lambda self: self.built)
    @rule(data=st.data(), wait_s=st.sampled_from([0.0, 2.0]))
    def promote(self, data: st.DataObject, wait_s: float) -> None:
        """An operator makes an earlier build current."""
        build_id = data.draw(st.sampled_from(self.built))
        self.rig.models.models = [model_of(build_id)]
        self.wait_for(wait_s)

    @rule(seconds=st.sampled_from([0.1, 1.2, 7.0, 15.0]))
    def wait(self, seconds: float) -> None:
        """Time goes on."""
        self.wait_for(seconds)

    @rule(away=st.booleans())
    def models_away(self, *, away: bool) -> None:
        """The models table cannot be read, or can again."""
        self.rig.models.failure = Unavailable("away") if away else None

    @rule(reads=st.booleans(), polls=st.booleans())
    def rows_away(self, *, reads: bool, polls: bool) -> None:
        """Rows, or the shards, cannot be read, or can again."""
        self.rig.rows.reads_fail, self.rig.rows.polls_fail = reads, polls

    @rule()
    def notifications_begin_again(self) -> None:
        """The connection to Redis was lost for a moment."""
        self.rig.notifier.queue.put_nowait(None)

    # --- what must be visible -------------------------------------------------------------------

    @rule()
    def read_the_last_write(self) -> None:
        """By its watermark: what answers has that write."""
        product_id = self.written
        last = len(self.history[product_id])

        async def read() -> None:
            after = Watermark(self.history[product_id][-1].moment, product_id)
            try:
                snapshot = await self.rig.registry.snapshot("m", after)
            except NotYetVisible:
                assert self.rig.rows.reads_fail or self.overflows
            else:
                if not self.overflows:
                    self.check(product_id, searched(snapshot)[product_id], last)

        self.run(read())

    @rule()
    def settle(self) -> None:
        """Everything works again for a while: what answers is the current build, as changed."""

        async def wait() -> None:
            self.rig.models.failure = None
            self.rig.rows.reads_fail = self.rig.rows.polls_fail = False
            current = self.rig.models.models[0].current_build_id
            await until(lambda: self.rig.build_id == current, 120)
            assert self.rig.health.ready
            assert self.rig.registry.troubles == {}

        self.run(wait())
        self.wait_for(30)
        if self.rig.build_id is None:
            return
        found = searched(self.rig.snapshot)
        for name, writes in self.history.items():
            present = found[name]
            if not self.overflows:
                self.check(name, present, len(writes))
            elif not writes or writes[-1].vector is None:
                assert present is None
        if not self.overflows:
            assert self.rig.fresh is not None

    @invariant()
    def nothing_goes_back(self) -> None:
        """What was seen stays seen, and what answers goes on answering, whatever was done."""
        if hasattr(self, "rig"):
            self.looked_at = None
            self.look()

    def look(self) -> None:
        """The same, where nothing was done but to wait."""
        snapshot = self.rig.registry.current("m")
        assert snapshot is not None or not self.answered
        if snapshot is None:
            return
        self.answered = True
        for name, present in self.vectors_in(snapshot).items():
            if not self.overflows:
                self.check(name, present, self.seen[name])
            elif self.seen[name] == len(self.history[name]) > 0:
                assert present is None  # a deletion that was seen, and nothing since
            if self.overflows and present is None and self.deleted_for_good(name):
                self.seen[name] = len(self.history[name])

    # --- the model ------------------------------------------------------------------------------

    def check(self, product_id: str, present: Floats | None, least: int) -> None:
        """A product is as one of its writes from the `least`-th on has it; 0 is before all."""
        states = [None, *(write.vector for write in self.history[product_id])]
        for count in range(least, len(states)):
            if same(present, states[count]):
                self.seen[product_id] = max(self.seen[product_id], count)
                return
        pytest.fail(f"{product_id} is not as write {least} of {len(states) - 1} or a later one")

    def deleted_for_good(self, product_id: str) -> bool:
        """Whether its last write is a deletion."""
        writes = self.history[product_id]
        return bool(writes) and writes[-1].vector is None

    def shown_writes(self) -> dict[str, Write]:
        """The last write of each product that the GSI shows."""
        now = self.runner.get_loop().time()
        shown = {
            name: [write for write in writes if write.shown_at <= now]
            for name, writes in self.history.items()
        }
        return {name: writes[-1] for name, writes in shown.items() if writes}

    def shown(self) -> list[Embedding]:
        """The rows as the GSI shows them."""
        return [
            embedding(name, last.vector, last.moment) for name, last in self.shown_writes().items()
        ]

    def vectors_in(self, snapshot: Snapshot) -> dict[str, Floats | None]:
        """The vector by which each product is found; None where no search finds it."""
        if snapshot is not self.looked_at:
            self.looked_at, self.vectors = snapshot, searched(snapshot)
        return self.vectors


def searched(snapshot: Snapshot) -> dict[str, Floats | None]:
    """The same, by searches of both kinds, which must agree."""
    refs = {name: snapshot.find(name) for name in PRODUCTS}
    vectors = {name: None if ref is None else snapshot.vector(ref) for name, ref in refs.items()}
    for exact in (False, True):
        (hits,) = snapshot.search([ANY.vector], 100, exact=exact)
        assert dict(zip(hits.product_ids, hits.scores, strict=True)) == {
            name: row_scores(ANY, present[None])[0]
            for name, present in vectors.items()
            if present is not None
        }
        assert len(set(hits.product_ids)) == len(hits.product_ids)
    return vectors


def same(present: Floats | None, written: Floats | None) -> bool:
    """Whether a product is as it was written."""
    if present is None or written is None:
        return present is written
    return np.array_equal(present, prepare_one(written, "cosine").vector)


ServingMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)
TestServing = ServingMachine.TestCase


def test_a_deletion_stays_seen_after_an_overflow_and_a_build() -> None:
    """By its mask alone, which the next version does not have, while the GSI does not show it."""
    machine = ServingMachine()
    try:
        machine.start(hard=3)
        machine.build(wait_s=0.0)
        for product_id in "dc":
            machine.write(product_id=product_id, delete=False, lag_s=0.0, notified=False)
        machine.notifications_begin_again()
        machine.write(product_id="a", delete=True, lag_s=GSI_LAG_S, notified=True)
        machine.write(product_id="b", delete=False, lag_s=0.0, notified=False)
        machine.nothing_goes_back()
        machine.settle()
    finally:
        machine.teardown()
