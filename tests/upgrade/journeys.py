"""The upgrade, old → both → new, and the downgrade, new → both → old."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from core.models import Build
from tests.upgrade import attributes, indexes, records
from tests.upgrade.catalogue import MODEL, sample, store
from tests.upgrade.environment import Environment, open_environment
from tests.upgrade.ledger import Ledger, Traffic
from tests.upgrade.releases import Release
from tests.upgrade.report import Report

RECALL_LOSS_MAX: Final = 0.005
"""Between two builds of almost the same rows."""
_MADE_BY_NEW: Final = "made-by-new"


class Journeys:
    """Both, one after the other, over one environment."""

    def __init__(self, environment: Environment, report: Report) -> None:
        self._environment = environment
        self._report = report
        self._ledger = Ledger()
        self._recall = 0.0
        self._build: Build | None = None
        """The last build of the catalogue."""
        self._build_ids: list[str] = []
        self._pending = ""
        """A caller whose deletion waits for a new worker."""

    async def run(self) -> None:
        """All phases."""
        await self._old()
        await self._traffic(self._both, "upgrade: both releases")
        await self._traffic(self._new, "upgrade: the new release alone")
        await self._traffic(self._back, "downgrade: both releases")
        await self._traffic(self._old_again, "downgrade: the old release alone")
        await self._forward_again()

    async def _check(self, what: str, checking: Callable[[], Awaitable[str]]) -> None:
        await self._report.check(what, checking)

    async def _limit(self, what: str, checking: Callable[[], Awaitable[str]]) -> None:
        await self._report.check(what, checking, limit=True)

    async def _traffic(self, phase: Callable[[], Awaitable[None]], name: str) -> None:
        """Runs a phase, with writes through every API that runs."""
        self._report.begin(name)
        traffic = Traffic(self._environment, self._ledger)
        traffic.start()
        await phase()
        await self._check("writes while processes came and went", traffic.stop)
        for release in self._environment.apis:
            await self._check(
                f"every acknowledged write is there, through {release}",
                partial(self._ledger.check, self._environment, release),
            )

    async def _measured(self, release: str) -> str:
        before = self._recall
        least = before - RECALL_LOSS_MAX
        self._recall = await indexes.recall_of(self._environment, self._ledger, release, least)
        return f"recall {self._recall:.4f}" + (f", {before:.4f} before" if before else "")

    async def _built(self, requester: str, worker: str) -> str:
        self._build = await indexes.build(self._environment, requester, worker)
        self._build_ids.append(self._build.build_id)
        return f"{self._build.build_id} by the {worker} worker"

    async def _promoted(self, release: str, number: int) -> str:
        return await indexes.promoted(self._environment, release, self._build_ids[number])

    async def _follows(self, release: str) -> str:
        assert self._build is not None
        return await indexes.follows(self._environment, release, self._build.build_id)

    async def _old(self) -> None:
        environment, ledger = self._environment, self._ledger
        self._report.begin("upgrade: the old release alone")
        await environment.start("old-api", "old-worker")

        async def stored() -> str:
            rows = sample()
            await store(environment.client("old"), MODEL, rows)
            for name, row in rows.items():
                ledger.put(MODEL, name, row)
            await records.store_quiet(environment)
            return f"{len(rows)} rows of {len(next(iter(rows.values())))} numbers"

        await self._check("a catalogue is stored", stored)
        await self._check("a build", partial(self._built, "old", "old"))
        await self._check("the index is followed", partial(self._follows, "old"))
        await self._check("recall", partial(self._measured, "old"))

    async def _both(self) -> None:
        environment, ledger = self._environment, self._ledger
        few = dict(list(sample().items())[:12])
        await environment.start("new-api")
        await self._check("new follows what old published", partial(self._follows, "new"))
        await self._check("recall through new", partial(self._measured, "new"))
        for first in ("old", "new"):
            await self._check(
                f"profiles, created by {first}",
                partial(records.profiles, environment, ledger, first),
            )
            await self._check(
                f"ETags of {first}", partial(records.etags, environment, ledger, first)
            )
            await self._check(
                f"writes of {first} seen by the other",
                partial(indexes.freshness, environment, ledger, first),
            )
        await self._check("attributes of new, beside writes of old",
                          partial(attributes.beside, environment, few))  # fmt: skip
        await self._check("keys of old, replayed by new",
                          partial(records.keys_of_old, environment, ledger))  # fmt: skip
        await self._limit("replay what new answered under a key",
                          partial(records.keys_of_new, environment, ledger))  # fmt: skip
        await self._check("a replay undoes nothing",
                          partial(records.key_overwritten, environment, ledger))  # fmt: skip
        await self._check("requested by new, built by old", partial(self._built, "new", "old"))
        for release in ("old", "new"):
            await self._check(f"followed by {release}", partial(self._follows, release))
        await self._check("matrix of old's build through new",
                          partial(indexes.matrix, environment, "new"))  # fmt: skip
        for release, number in (("new", -2), ("old", -1)):
            await self._check(f"promoted at {release}", partial(self._promoted, release, number))
        before = self._build
        for first in ("old", "new"):
            await self._check(f"cursors of {first}", partial(records.cursors, environment, first))
        await self._check("requested by old, built by new", partial(self._built, "old", "new"))
        await self._check("followed by new", partial(self._follows, "new"))
        await self._check("recall through new", partial(self._measured, "new"))
        if before is not None:
            await self._limit(
                "find the index that new published",
                partial(indexes.old_keeps_answering, environment, ledger, before.build_id),
            )
            await self._check(
                "old is killed then, and answers from its disk",
                partial(indexes.old_restarts, environment, ledger, before.build_id),
            )
        for first in ("old", "new"):
            await self._check(
                f"{first} worker killed in a build, the other's takes it over",
                partial(indexes.taken_over, environment, first),
            )
        await self._deletions()

    async def _deletions(self) -> None:
        environment = self._environment
        await self._limit("delete a user whose deletion new accepted",
                          partial(records.deletion_left_alone, environment))  # fmt: skip
        await self._check("user deleted at old, new worker runs",
                          partial(records.deletion_by_new_worker, environment))  # fmt: skip
        await self._check("model version made by new, old worker runs",
                          partial(indexes.model_of_new, environment, _MADE_BY_NEW))  # fmt: skip
        await self._limit("write or build a model version that new created",
                          partial(indexes.refused_by_old, environment, _MADE_BY_NEW))  # fmt: skip
        await self._check("verification of its build, old worker runs",
                          partial(indexes.verified, environment, _MADE_BY_NEW))  # fmt: skip
        await self._check("model version deleted at new, old worker runs",
                          partial(indexes.model_deleted, environment, "doomed"))  # fmt: skip
        await self._check("backup of old, restored by new",
                          partial(indexes.archive_restored, environment))  # fmt: skip

    async def _new(self) -> None:
        environment = self._environment
        await environment.start("new-worker")
        await environment.stop("old-worker", "old-api")
        await self._check("recall", partial(self._measured, "new"))
        await self._check("a worker is killed in a build",
                          partial(indexes.killed_in_build, environment, "new", "new"))  # fmt: skip
        await self._check("recall after it", partial(self._measured, "new"))
        await environment.kill_api("new")
        await self._check("recall after the API was killed", partial(self._measured, "new"))
        await self._check("a build", partial(self._built, "new", "new"))
        await self._check("the index is followed", partial(self._follows, "new"))
        await self._check("recall", partial(self._measured, "new"))

    async def _back(self) -> None:
        """Workers first, whose builds both APIs find; then the APIs."""
        environment, ledger = self._environment, self._ledger
        self._pending = await records.pending_deletion(environment)
        await self._check("pending deletion done before the new worker stops",
                          partial(records.gone, environment, "new", self._pending))  # fmt: skip
        await self._check("requested by new, built by old", partial(self._built, "new", "old"))
        await environment.start("old-api")
        for release in ("new", "old"):
            await self._check(f"followed by {release}", partial(self._follows, release))
            await self._check(f"recall through {release}", partial(self._measured, release))
        await self._check("both answer alike", partial(indexes.same_answers, environment))
        for first in ("old", "new"):
            await self._check(
                f"writes of {first} seen by the other",
                partial(indexes.freshness, environment, ledger, first),
            )
        self._pending = await records.pending_deletion(environment)

    async def _old_again(self) -> None:
        environment = self._environment
        await environment.stop("new-api", "new-worker")
        await self._check("recall", partial(self._measured, "old"))
        await self._check("a worker is killed in a build",
                          partial(indexes.killed_in_build, environment, "old", "old"))  # fmt: skip
        await self._check("recall after it", partial(self._measured, "old"))
        await environment.kill_api("old")
        await self._check("recall after the API was killed", partial(self._measured, "old"))

    async def _forward_again(self) -> None:
        """What waited for the new release while only the old one ran."""
        environment = self._environment
        self._report.begin("upgrade again")
        await environment.start("new-api", "new-worker")
        await self._check("the deletion that was left is done",
                          partial(records.gone, environment, "new", self._pending))  # fmt: skip
        await self._check("recall through new", partial(self._measured, "new"))
        await self._check("every acknowledged write is there, through new",
                          partial(self._ledger.check, environment, "new"))  # fmt: skip


async def run(old: Release, new: Release) -> Report:
    """Both journeys; what was checked."""
    report = Report()
    async with open_environment(old, new) as environment:
        journeys = Journeys(environment, report)
        await journeys.run()
    return report
