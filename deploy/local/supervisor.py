"""`k9 dev`: starts every service, restarts those that end, and stops all of them in order."""

import asyncio
import contextlib
import importlib
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

import msgspec
from rich.console import Console

from core.concurrency import gather
from core.errors import K9Error
from core.files import write_atomically
from core.retry import RetryPolicy
from core.settings import Settings
from deploy.errors import CommandError
from deploy.local import services
from deploy.local.files import OPERATOR, DataDir, RunningStack, Secrets
from deploy.local.processes import ManagedProcess, end_orphans, identity

STOP_GRACE_S = 4.0
"""For API and worker: with the emulator's one second, everything has stopped within ten."""
EMULATOR_GRACE_S = 120.0
"""The emulator writes 100,000 rows in some ten seconds, on a slow disk in many more."""
_RESTART = RetryPolicy(first_s=0.5, max_s=30.0, jitter=0.0)
_STABLE_S = 60.0
"""A service that ran this long restarts with the first delay again."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Supervisor:
    """Runs the services of `k9 dev`, from start to stop."""

    def __init__(
        self,
        data: DataDir,
        stack_file: Path,
        ports: services.Ports,
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
        base = services.base_environ(environ)
        self._environ = dict(base)
        """Of API and worker; complete once the user pool is known."""
        gateway = {**base, **services.gateway_environ(data, ports.aws, self._secrets)}
        self._aws = services.python_process(data, "aws", services.GATEWAY, gateway)
        command = services.valkey_command(data, ports.valkey, self._secrets)
        self._valkey = services.process(data, "valkey", command, base)
        self._api = services.python_process(data, "api", "api", self._environ)
        self._worker = services.python_process(data, "worker", "worker", self._environ)
        self._processes = (self._aws, self._valkey, self._api, self._worker)
        self._stopping = False
        self._running: RunningStack | None = None
        self._started = monotonic()

    # --- from start to stop -----------------------------------------------------------------------

    async def run(self) -> None:
        """Runs until a signal arrives, then stops everything.

        Raises:
            CommandError: the start failed; everything is stopped then too.
        """
        loop = asyncio.get_running_loop()
        main = asyncio.create_task(self._main())
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal, main)
        try:
            await asyncio.wait({main})
            if not main.cancelled():
                main.result()
        finally:
            self._stopping = True
            main.cancel()
            await asyncio.wait({main})
            await self._stop()
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _on_signal(self, main: asyncio.Task[None]) -> None:
        if not self._stopping:
            self._say("stopping")
            self._stopping = True
            main.cancel()
            return
        self._say("stopping at once: what the emulator has not written is lost")
        for process in self._processes:
            process.kill()

    async def _main(self) -> None:
        self._say(f"starting, with data and logs in {_relative(self._data.root)}")
        await asyncio.to_thread(end_orphans, self._data.pids, EMULATOR_GRACE_S, self._say)
        self._clean_up()
        # aioboto3 is loaded while the emulator starts.
        loading = asyncio.to_thread(importlib.import_module, "deploy.aws.data_stack")
        await asyncio.gather(self._start(self._aws), self._start(self._valkey), loading)
        self._data.marker.write_text(f"{datetime.now(UTC).isoformat()}\n", encoding="ascii")
        await self._prepare()
        await asyncio.gather(self._api.start(), self._worker.start())
        await gather(self._show(), *(self._restart(process) for process in self._processes))

    async def _start(self, process: ManagedProcess) -> None:
        await process.start()
        await self._wait_until_ready(process)

    async def _wait_until_ready(self, process: ManagedProcess) -> None:
        await services.wait_until_ready(process, self._ports, self._secrets)

    async def _stop(self) -> None:
        """Stops API and worker first, since they use the others, then AWS and Valkey."""
        began = monotonic()
        self._stack_file.unlink(missing_ok=True)
        await asyncio.gather(self._api.stop(STOP_GRACE_S), self._worker.stop(STOP_GRACE_S))
        loop = asyncio.get_running_loop()
        slow = loop.call_later(3, self._say, "the emulator is still writing its data")
        was_running = self._aws.running
        requested_at = datetime.now(UTC)
        clean, _ = await asyncio.gather(
            self._aws.stop(EMULATOR_GRACE_S), self._valkey.stop(EMULATOR_GRACE_S)
        )
        slow.cancel()
        saved_at = self._data.tables_saved_at
        # The emulator exits with 0 even if it could not write, as on a full disk.
        written = saved_at is not None and saved_at >= requested_at
        if was_running and clean and (written or self._running is None):
            self._data.marker.unlink(missing_ok=True)
            self._say(f"stopped in {monotonic() - began:.1f} s; the data is in {self._data.root}")
        elif was_running:
            self._say("stopped, and the emulator may not have written all of its data")

    # --- state ------------------------------------------------------------------------------------

    def _clean_up(self) -> None:
        """Reports what a stop that was not clean may have lost, and removes temporary files."""
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
            # Without tables the rest is useless: partial state, and a bucket with which the
            # template cannot be applied.
            if any(self._data.objects.iterdir()):
                self._say("removing indexes and jobs, whose tables do not exist")
            data = self._data
            scratch += [data.state, data.objects, data.valkey, data.cache]
        for path in scratch:
            shutil.rmtree(path)
            path.mkdir()

    async def _prepare(self) -> bool:
        """Creates tables, bucket and user pool.

        Returns:
            Whether the environment of API and worker has changed.
        """
        from deploy.aws.cognito import ensure_pool  # noqa: PLC0415
        from deploy.aws.data_stack import create_tables  # noqa: PLC0415

        aws = services.aws_environ(self._ports, self._secrets)
        for name in os.environ.keys() - self._environ.keys():
            del os.environ[name]  # botocore would use the caller's profile
        os.environ.update(aws)
        settings = Settings.from_env(aws)
        made, pool = await asyncio.gather(create_tables(settings), ensure_pool(settings))
        environ = services.service_environ(
            self._data, self._ports, self._secrets, pool, made.bucket
        )
        changed = any(self._environ.get(name) != value for name, value in environ.items())
        self._environ.update(environ)
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

    def _write_stack_file(self) -> None:
        """Lets the other commands find the stack."""
        write_atomically(self._stack_file, msgspec.json.encode(self._running))

    @property
    def _settings(self) -> Settings:
        return Settings.from_env(self._environ)

    # --- keeping it running -----------------------------------------------------------------------

    async def _restart(self, process: ManagedProcess) -> None:
        """Restarts a process whenever it ends, with growing delays while it keeps failing."""
        failures = 0
        while True:
            how, ran_s = await process.wait()
            failures = 1 if ran_s >= _STABLE_S else failures + 1
            delay_s = _RESTART.delay_s(failures)
            line = process.last_line()
            self._say(
                f"{process.name} ended ({how}); starting it again in {delay_s:g} s"
                f"{f': {line[:200]}' if line else ''} (see {_relative(process.log)})"
            )
            await asyncio.sleep(delay_s)
            await process.start()
            if process is self._aws:
                try:
                    await self._recover()
                except (CommandError, K9Error) as error:
                    self._say(f"aws did not recover: {error}")
                    process.kill()

    async def _recover(self) -> None:
        """Prepares a restarted emulator, which only has what it wrote at the last clean stop."""
        await self._wait_until_ready(self._aws)
        saved_at = self._data.tables_saved_at
        since = f"since {saved_at:%Y-%m-%d %H:%M:%S} UTC" if saved_at else "so far"
        self._say(f"aws is back; rows and builds written {since} are lost")
        if await self._prepare():
            self._write_stack_file()
            self._say("the user pool is new, so API and worker restart with it")
            for process in (self._api, self._worker):
                await process.stop(STOP_GRACE_S)
        if not self._empty:
            await self._prepare_sample()

    # --- output -----------------------------------------------------------------------------------

    async def _show(self) -> None:
        if self._empty:
            await self._api_ready()
            self._say(f"ready in {monotonic() - self._started:.1f} s, with no data loaded")
            return
        from deploy.local import sample  # noqa: PLC0415

        running = self._running
        if running is None:
            raise RuntimeError("the stack has not been prepared")
        # The sample is written to the tables directly, so it need not wait for the API.
        published, _ = await gather(self._prepare_sample(), self._api_ready())
        token = await running.fetch_token(self._settings, OPERATOR, operator=True)
        url = self._environ["K9_URL"]
        try:
            await sample.show_neighbors(
                self._settings,
                self._console,
                self._say,
                url=url,
                token=token,
                published=bool(published),
            )
        except CommandError as error:
            self._say(f"no neighbours of {sample.PRODUCT} yet: {error}")
        self._print(f"\nReady in {monotonic() - self._started:.1f} s. To try, elsewhere:\n")
        for line in sample.examples(_command(), url, token):
            self._print(f"  {line}")
        self._print(f"\nThe API's reference is {url}/docs. Ctrl-C stops everything.")

    async def _api_ready(self) -> None:
        await self._wait_until_ready(self._api)
        self._write_stack_file()
        environ = self._environ
        self._say(f"api on {environ['K9_URL']}, aws on {environ['AWS_ENDPOINT_URL']}")

    async def _prepare_sample(self) -> bool:
        from deploy.local import sample  # noqa: PLC0415

        return await sample.prepare(self._settings, self._console, self._say)

    def _say(self, line: str) -> None:
        self._print(f"k9 dev: {line}")

    def _print(self, line: str) -> None:
        # Not wrapped, so that commands can be copied.
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _command() -> str:
    """How to call this command from the current directory."""
    if shutil.which("k9"):
        return "k9"
    path = Path(sys.argv[0]).absolute()
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _relative(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd().resolve()))
    return str(path)
