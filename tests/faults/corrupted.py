"""Index files cut short and with a wrong bit, in S3 and in the cache: none of them ever answers.

    python -m tests.faults.corrupted [--rows 8000] [--dimension 256] [--questions 20]

A build is published over one that answers, and its index file in S3 is damaged before the API comes
to fetch it: the one before answers on, until the file is mended, or another build is made. Then the
API is killed, its own copy of the file is damaged, and it starts again: the copy is fetched anew,
or, with the file in S3 damaged as well, the version before answers from the cache until that is
mended. All the while questions are put. Prints what was seen of each; exits 1 where an answer came
from a damaged version, or was another one, and where no metric or no log line told of the refusal.
"""

import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable

import httpx

from core.index.files import INDEX
from core.models import Build, Model
from tests.faults.damage import DAMAGE
from tests.faults.machine import Machine, main
from tests.faults.questions import Answer, Questions, answering, differing, troubled

MODEL = "corrupted"
_ROUNDS = 3
"""How often all questions are put while a version is refused."""


class Run:
    """One machine, with a build that answers."""

    def __init__(
        self, machine: Machine, questions: Questions, build: Build, answers: list[Answer]
    ) -> None:
        self.machine = machine
        self.questions = questions
        self.build = build
        """The latest that holds."""
        self.answers = answers
        """What is right: rows do not change."""
        self.wrong: list[str] = []

    async def damaged_in_s3(self, kind: str, *, mended: bool) -> None:
        """A new build's index file is damaged before the API fetches it."""
        print(f"\n{INDEX} in S3 {kind}, before the API fetched it")
        machine = self.machine
        starts = machine.site.parts["api"].starts
        refusals = await machine.refusals("s3")
        machine.signal_api(signal.SIGSTOP)
        build = await self.questions.build(machine.resources)
        mend = await machine.damage_object(await self._model(), INDEX, DAMAGE[kind])
        machine.signal_api(signal.SIGCONT)
        async with machine.client() as client:
            await self._refused(client, build, "s3", refusals)
            await self._answers_from(client, self.build)
            if mended:
                await self._moves_on(client, build, mend, "once it is mended")
            else:
                build = await self.questions.build(machine.resources)
                await self._moves_on(client, build, _nothing, "once another build is published")
        if machine.site.parts["api"].starts != starts:
            self.wrong.append("the API died")

    async def damaged_on_disk(self, kind: str) -> None:
        """The API's own copy is damaged while it is down."""
        print(f"\n{INDEX} in the cache {kind}, then a start of the API")
        self.machine.signal_api(signal.SIGSTOP)
        self.machine.damage_copy(await self._model(), INDEX, DAMAGE[kind])
        self.machine.signal_api(signal.SIGKILL)
        async with self.machine.client() as client:
            await self._moves_on(client, self.build, _nothing, "which it fetched again")
            await self._told(self.build, "cache", 0)

    async def damaged_in_both(self, kind: str) -> None:
        """The API's own copy is damaged while it is down, and so is the one in S3."""
        print(f"\n{INDEX} in the cache and in S3 {kind}, then a start of the API")
        build = self.build
        before = await self.questions.build(self.machine.resources)  # what is to be damaged
        async with self.machine.client() as client:
            await answering(client, before.build_id)
        model = await self._model()
        self.machine.signal_api(signal.SIGSTOP)
        self.machine.damage_copy(model, INDEX, DAMAGE[kind])
        mend = await self.machine.damage_object(model, INDEX, DAMAGE[kind])
        self.machine.signal_api(signal.SIGKILL)
        async with self.machine.client() as client:
            await self._refused(client, before, "s3", 0)
            await self._told(before, "cache", 0)
            await self._answers_from(client, build)
            await self._moves_on(client, before, mend, "once S3 is mended")

    async def _model(self) -> Model:
        return await self.machine.resources.models.get_model(MODEL)

    async def _refused(
        self, client: httpx.AsyncClient, build: Build, where: str, refusals: float
    ) -> None:
        """The API tells that it refused a build."""
        ready = await troubled(client, MODEL)
        if ready.status_code != httpx.codes.OK:
            self.wrong.append(f"readiness is {ready.status_code}")
        print(f"  readiness {ready.status_code}: {ready.json()['troubles'][MODEL]}")
        await self._told(build, where, refusals)

    async def _told(self, build: Build, where: str, refusals: float) -> None:
        """A metric counts the refusal, and a line of the log says of what."""
        counted = await self.machine.refusals(where)
        lines = [
            {name: line[name] for name in ("model_version", "build_id", "file", "where", "reason")}
            for line in self.machine.site.logged("index version refused", "api")
            if (line["build_id"], line["where"]) == (build.build_id, where)
        ]
        print(f'  k9_versions_refused_total{{reason="{where}"}}: {refusals:g} -> {counted:g}')
        print(f"  log: {lines[-1] if lines else None}")
        if counted <= refusals or not lines or lines[-1]["file"] != INDEX:
            self.wrong.append(f"the refusal of build {build.build_id} was not told")

    async def _answers_from(self, client: httpx.AsyncClient, build: Build) -> None:
        """All questions are answered from this build, and as they were before."""
        for _ in range(_ROUNDS):
            answers = await self.questions.ask(client)
            others = differing(self.answers, answers)
            from_others = sum(answer[0] != build.build_id for answer in answers)
            if others or from_others:
                self.wrong.append(f"{others} other answers, {from_others} from other builds")
            await asyncio.sleep(0.5)
        print(f"  {_ROUNDS * len(self.answers)} answers, all from build {build.build_id}")

    async def _moves_on(
        self, client: httpx.AsyncClient, build: Build, act: Callable[[], Awaitable[None]], when: str
    ) -> None:
        """After something, the API answers from a build by itself."""
        await act()
        began = time.monotonic()
        await answering(client, build.build_id)
        print(f"  answers from build {build.build_id} {when}: {time.monotonic() - began:.1f} s")
        others = differing(self.answers, await self.questions.ask(client))
        if others:
            self.wrong.append(f"{others} answers of build {build.build_id} are other ones")
        self.build = build


async def _nothing() -> None:
    """Waiting is all there is to do."""


async def run(machine: Machine, questions: Questions, *, short: bool = False) -> list[str]:
    """All of it, or one damage of each kind; what is wrong."""
    await questions.store(machine.resources)
    build = await questions.build(machine.resources)
    async with machine.client() as client:
        await answering(client, build.build_id)
        answers = await questions.ask(client)
    family = (build.manifest or {})["index"]["family"]
    print(f"build {build.build_id} answers: {questions.rows} rows as {family}")
    one = Run(machine, questions, build, answers)
    truncated, flipped = DAMAGE
    await one.damaged_in_s3(truncated, mended=True)
    await one.damaged_in_both(flipped)
    if not short:
        await one.damaged_in_s3(flipped, mended=False)
        await one.damaged_on_disk(truncated)
        await one.damaged_on_disk(flipped)
        await one.damaged_in_both(truncated)
    return one.wrong


if __name__ == "__main__":
    sys.exit(main(__doc__, run, Questions(MODEL, rows=8000, dimension=256, each=20)))
