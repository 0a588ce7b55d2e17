"""`k9 dev`: starts every part, keeps them running, and stops them in order."""

import asyncio
import contextlib
import importlib
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

import msgspec
from rich.console import Console

from core.errors import K9Error
from core.settings import Settings
from deploy.errors import CommandError
from deploy.local import services as stack
from deploy.local.files import OPERATOR, DataDir, RunningStack, Secrets, write_private
from deploy.local.processes import Backoff, Part, end_leftovers, identity
from deploy.terminal import index_line, neighbor_table

STOP_GRACE_S = 4.0
"""For API and worker: together with the emulator's own second, all is over within ten."""
EMULATOR_GRACE_S = 120.0
"""100,000 rows take the emulator some ten seconds to write, on a slow disk many more."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Supervisor:
    """Everything that `k9 dev` runs, from start to stop."""

    def __init__(
        self,
        data: DataDir,
        stack_file: Path,
        ports: stack.Ports,
        environ: Mapping[str, str],
        console: Console,
        *,
        empty: bool,
    ) -> None:
        self._data = data
        self._stack_file = stack_file
        self._ports = ports
        self._console = console
        self._empty = empty
        self._secrets: Secrets = data.secrets()
        base = stack.base_environ(environ)
        self._services = dict(base)
        """What API and worker start with; filled in once the pool is known."""
        self._aws = stack.aws_part(data, ports, self._secrets, base)
        self._valkey = stack.valkey_part(data, ports, self._secrets, base)
        self._api = stack.api_part(data, self._services)
        self._worker = stack.worker_part(data, self._services)
        self._parts = (self._aws, self._valkey, self._api, self._worker)
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._running: RunningStack | None = None
        self._started = monotonic()

    # --- from start to stop -----------------------------------------------------------------------

    async def run(self) -> None:
        """Runs until a signal comes, then stops everything.

        Raises:
            CommandError: when the start fails; everything is stopped then too.
        """
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        main = asyncio.create_task(self._main())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({main, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if main.done():
                main.result()
        finally:
            self._stopping.set()
            await _cancelled(main, stopping)
            await self._stop()
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if not self._stopping.is_set():
            self._say("stopping")
            self._stopping.set()
            return
        self._say("stopping at once: what the emulator has not written is lost")
        for part in self._parts:
            part.kill()

    async def _main(self) -> None:
        self._say(f"starting, with data and logs in {_shown(self._data.root)}")
        await asyncio.to_thread(end_leftovers, self._data.pids, EMULATOR_GRACE_S, self._say)
        self._clear_up()
        # What brings aioboto3 along is loaded late, while the emulator starts.
        loading = asyncio.to_thread(importlib.import_module, "deploy.aws.data_stack")
        await asyncio.gather(self._up(self._aws), self._up(self._valkey), loading)
        self._data.marker.write_text(f"{datetime.now(UTC).isoformat()}\n", encoding="ascii")
        await self._prepare()
        await asyncio.gather(self._api.start(), self._worker.start())
        for part in self._parts:
            self._keepers.append(asyncio.create_task(self._keep(part)))
        shown = asyncio.create_task(self._show())
        await _first_error(shown, *self._keepers)

    async def _up(self, part: Part) -> None:
        await part.start()
        await stack.wait_ready(part, self._ports, self._secrets)

    async def _stop(self) -> None:
        """API and worker first, since they use the rest; then AWS, which writes, and Valkey."""
        await _cancelled(*self._keepers)
        began = monotonic()
        self._stack_file.unlink(missing_ok=True)
        await asyncio.gather(self._api.stop(STOP_GRACE_S), self._worker.stop(STOP_GRACE_S))
        slow = asyncio.create_task(self._tell_of_slow_stop())
        was_up = self._aws.running
        asked_at = datetime.now(UTC)
        clean, _ = await asyncio.gather(
            self._aws.stop(EMULATOR_GRACE_S), self._valkey.stop(EMULATOR_GRACE_S)
        )
        await _cancelled(slow)
        saved_at = self._data.tables_saved_at
        # The emulator ends well even where it could not write, as on a full disk.
        written = saved_at is not None and saved_at >= asked_at
        if was_up and clean and (written or self._running is None):
            self._data.marker.unlink(missing_ok=True)
            self._say(f"stopped in {monotonic() - began:.1f} s; the data is in {self._data.root}")
        elif was_up:
            self._say("stopped, and the emulator may not have written all of its data")

    async def _tell_of_slow_stop(self) -> None:
        await asyncio.sleep(3)
        self._say("the emulator is still writing its data")

    # --- state ------------------------------------------------------------------------------------

    def _clear_up(self) -> None:
        """Says what a stop that was not clean may have cost, and removes what is of no use."""
        saved_at = self._data.tables_saved_at
        if self._data.marker.exists():
            if saved_at is None:
                lost = "the emulator never wrote its tables, so all rows are gone"
            else:
                lost = (
                    f"the emulator last wrote its tables at {saved_at:%Y-%m-%d %H:%M:%S} UTC; "
                    "rows and builds from after that may be lost (objects in S3 are not)"
                )
            self._say(f"the last stop was not clean: {lost}")
        scratch = [self._data.work, self._data.temporary]
        if saved_at is None:
            # Without tables the rest is of no use: half a state, and a bucket that would stand in
            # the template's way.
            if any(self._data.objects.iterdir()):
                self._say("removing indexes and jobs that were left without tables")
            data = self._data
            scratch += [data.state, data.objects, data.valkey, data.cache]
        for path in scratch:
            shutil.rmtree(path)
            path.mkdir()

    async def _prepare(self) -> bool:
        """Tables, bucket and user pool. True when the services' environment is another now."""
        from deploy.aws.cognito import ensure_pool  # noqa: PLC0415
        from deploy.aws.data_stack import create_tables  # noqa: PLC0415

        reach = stack.aws_environ(self._ports, self._secrets)
        for name in os.environ.keys() - self._services.keys():
            del os.environ[name]  # the caller's own profile would be looked for too
        os.environ.update(reach)
        settings = Settings.from_env(reach)
        made, pool = await asyncio.gather(create_tables(settings), ensure_pool(settings))
        environ = stack.service_environ(self._data, self._ports, self._secrets, pool, made.bucket)
        changed = any(self._services.get(name) != value for name, value in environ.items())
        self._services.update(environ)
        self._running = RunningStack(
            pid=os.getpid(),
            identity=identity(os.getpid()) or "",
            environ=environ,
            pool_id=pool.pool_id,
            client_id=pool.client_id,
            password=self._secrets.password,
        )
        if made.change == "created":
            self._say("tables and bucket created")
        return changed

    def _announce(self) -> None:
        """Tells the other commands of the stack."""
        write_private(self._stack_file, msgspec.json.encode(self._running))

    @property
    def _settings(self) -> Settings:
        return Settings.from_env(self._services)

    # --- keeping it running -----------------------------------------------------------------------

    async def _keep(self, part: Part) -> None:
        """Starts a part again whenever it ends, ever more slowly while it keeps failing."""
        backoff = Backoff()
        while True:
            how, ran_s = await part.wait()
            wait_s = backoff.after(ran_s)
            words = part.last_words()
            self._say(
                f"{part.name} ended ({how}); starting it again in {wait_s:g} s"
                f"{f': {words[:200]}' if words else ''} (see {_shown(part.log)})"
            )
            await asyncio.sleep(wait_s)
            await part.start()
            if part is self._aws:
                try:
                    await self._recover()
                except (CommandError, K9Error) as error:
                    self._say(f"aws is not as it should be: {error}")
                    part.kill()

    async def _recover(self) -> None:
        """After the emulator died: it has what it wrote at the last clean stop, and no more."""
        await stack.wait_ready(self._aws, self._ports, self._secrets)
        self._tell_of_loss()
        if await self._prepare():
            self._announce()
            self._say("the user pool is new, so API and worker start again with it")
            for part in (self._api, self._worker):
                await part.stop(STOP_GRACE_S)
        if not self._empty:
            await self._load_sample()

    def _tell_of_loss(self) -> None:
        saved_at = self._data.tables_saved_at
        since = f"since {saved_at:%Y-%m-%d %H:%M:%S} UTC" if saved_at else "so far"
        self._say(f"aws is back; rows and builds written {since} are lost")

    # --- what is shown ----------------------------------------------------------------------------

    async def _show(self) -> None:
        if self._empty:
            await self._api_ready()
            self._say(f"ready in {monotonic() - self._started:.1f} s, with no data loaded")
        else:
            await self._show_sample()
        await self._stopping.wait()

    async def _api_ready(self) -> None:
        await stack.wait_ready(self._api, self._ports, self._secrets)
        self._announce()
        reach = self._services
        self._say(f"api on {reach['K9_URL']}, aws on {reach['AWS_ENDPOINT_URL']}")

    async def _show_sample(self) -> None:
        from deploy.aws.cognito import fetch_token  # noqa: PLC0415
        from deploy.local import sample  # noqa: PLC0415

        running = self._running
        if running is None:
            raise RuntimeError("the stack is shown before it is prepared")
        # The sample goes to the tables directly: it need not wait for the API.
        loading = asyncio.create_task(self._load_sample())
        await _first_error(loading, asyncio.create_task(self._api_ready()))
        token = await fetch_token(
            self._settings,
            pool_id=running.pool_id,
            client_id=running.client_id,
            user=OPERATOR,
            password=running.password,
            operator=True,
        )
        url = self._services["K9_URL"]
        try:
            answer = await sample.neighbors(url, token, published=loading.result())
            if answer is None:
                await self._build_sample()
                answer = await sample.neighbors(url, token, published=True)
        except CommandError as error:
            self._say(f"no neighbours of {sample.PRODUCT} yet: {error}")
        else:
            self._print(f"\nNeighbours of {sample.PRODUCT}:\n")
            self._console.print(neighbor_table(answer or {"neighbors": ()}))
            self._print(f"\n{index_line((answer or {}).get('index', {}))}")
        self._tell_what_to_try(url, token)

    async def _load_sample(self) -> bool:
        """Loads and builds the sample where it is not there. True when an index is published."""
        from deploy.local import sample  # noqa: PLC0415

        settings = self._settings
        if await sample.is_loaded(settings):
            return False
        stored = await sample.load(settings, self._console)
        self._say(f"sample loaded: {stored:,} embeddings of {sample.MODEL}")
        return await self._build_sample()

    async def _build_sample(self) -> bool:
        from deploy.local import sample  # noqa: PLC0415

        with self._console.status("building the index") as status:
            built = await sample.build(self._settings, status.update)
        if built is None:
            return True
        self._say(
            f"build {built.build_id} {built.status}{': ' if built.error else ''}{built.error or ''}"
        )
        return built.status == "published"

    def _tell_what_to_try(self, url: str, token: str) -> None:
        from deploy.local import sample  # noqa: PLC0415

        k9 = _command()
        model = f"{url}/models/{sample.MODEL}"
        self._print(f"\nReady in {monotonic() - self._started:.1f} s. To try, elsewhere:\n")
        self._print(f"  {k9} neighbors {sample.MODEL} {sample.PRODUCT}")
        self._print(
            f"  curl -s '{model}/products/{sample.PRODUCT}/neighbors?k=5'"
            f" -H 'Authorization: Bearer {token}'"
        )
        self._print(f"  TOKEN=$({k9} token --operator)")
        self._print(
            f'  curl -s {model}/search -H "Authorization: Bearer $TOKEN"'
            ' -H \'Content-Type: application/json\' -d \'{"product_id": "numpy", "k": 5}\''
        )
        self._print(f"\nThe API's reference is {url}/docs. Ctrl-C stops everything.")

    def _say(self, line: str) -> None:
        self._print(f"k9 dev: {line}")

    def _print(self, line: str) -> None:
        # Not wrapped: what is to be pasted must stay one line.
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _command() -> str:
    """How this command is called from here."""
    if shutil.which("k9"):
        return "k9"
    path = Path(sys.argv[0]).absolute()
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _shown(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd().resolve()))
    return str(path)


async def _cancelled(*tasks: asyncio.Task[None] | asyncio.Task[bool]) -> None:
    for task in tasks:
        task.cancel()
    waiting: Iterable[Awaitable[object]] = tasks
    await asyncio.gather(*waiting, return_exceptions=True)


async def _first_error(*tasks: asyncio.Task[None] | asyncio.Task[bool]) -> None:
    """Waits for all, and raises the first error at once; none goes on after that."""
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        await _cancelled(*tasks)
