"""Everything that `k9 doctor` examines, side by side, each part within a time of its own."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final
from uuid import uuid4

from core import names
from core.dynamo import tables
from core.dynamo.client import open_dynamo
from core.errors import K9Error, SettingsError
from core.settings import Settings
from deploy.aws.attempts import Attempt, attempt
from deploy.aws.clients import open_client
from deploy.doctor import host, services
from deploy.doctor.latency import measure
from deploy.doctor.report import Check, Latency, Process, Report, failed, ok, warning
from deploy.doctor.tables import check_rights, check_tables
from deploy.errors import CommandError

Part = Coroutine[Any, Any, list[Check]]

_CREDENTIALS: Final = (
    "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the process a role; "
    "or start the embedded stack with `k9 dev`"
)
_ADDRESS: Final = (
    "look at AWS_REGION and AWS_ENDPOINT_URL, and at the way there (VPC endpoint, proxy)"
)


async def examine(
    settings: Settings, *, calls: int, timeout_s: float, process: Process | None = None
) -> Report:
    """Examines everything that K9 depends on.

    It changes nothing of users' data: its own row and object are deleted again.

    Args:
        settings: Of the environment.
        calls: How often each operation is timed; 0: not at all.
        timeout_s: For each part; the parts run side by side.
        process: Whose rights are examined; None: those of API and worker together.
    """
    run = _Examination(settings, calls, process)
    where = settings.aws.endpoint_url or f"AWS in {settings.aws.region}"
    checks = [ok("settings", f"environment {settings.environment}, {where}")]
    if process != "worker":
        checks.append(services.check_rates(settings))
    checks += await _within(timeout_s, "credentials", run.caller())
    parts: dict[str, Part] = {
        "redis": services.check_redis(settings),
        "token keys": services.check_tokens(settings),
        "machine": asyncio.to_thread(host.check_host, settings),
    }
    if run.accepted:
        parts = {"dynamodb": run.dynamodb(), "bucket": run.bucket(), **parts}
    lists = await asyncio.gather(*(_within(timeout_s, name, part) for name, part in parts.items()))
    checks += [check for part in lists for check in part]
    return Report(settings.environment, checks, run.measured)


async def _within(timeout_s: float, name: str, part: Part) -> list[Check]:
    """The checks of a part; one failed check if it could not be carried out."""
    try:
        async with asyncio.timeout(timeout_s):
            return await part
    except TimeoutError:
        detail = f"was not finished within {timeout_s:g} s"
        return [failed(name, detail, "try again with a longer --timeout, or fewer --calls")]
    except SettingsError as error:
        return [failed(name, str(error), "correct the setting")]
    except (CommandError, K9Error) as error:
        return [failed(name, str(error), _ADDRESS)]
    except Exception as error:  # noqa: BLE001 - one surprise must not hide all other findings
        return [failed(name, f"{type(error).__name__}: {error}", "report this as a defect of K9")]


def _unusable(name: str, made: Attempt) -> Check:
    advice = _ADDRESS if made.outcome == "unreachable" else _CREDENTIALS
    return failed(name, made.message or made.code, advice)


class _Examination:
    """The parts that need AWS."""

    def __init__(self, settings: Settings, calls: int, process: Process | None) -> None:
        self._settings = settings
        self._calls = calls
        self._process = process
        self._key = f"k9-doctor-{uuid4().hex}"
        """Of every row and object that is read or written."""
        self._account: str | None = None
        self._clock_known = False
        self.accepted = True
        """False once AWS has refused the credentials."""
        self.measured: list[Latency] = []

    async def caller(self) -> list[Check]:
        """Who AWS takes the caller for, and how far its clock is from this one."""
        async with open_client("sts", self._settings) as client:
            began = host.unix_time()
            made = await attempt(client, "get_caller_identity")
            clock = host.check_clock(began, host.unix_time(), made.server_time)
        self._clock_known = made.server_time is not None
        if made.outcome == "ok":
            self._account = str(made.reply["Account"])
            return [ok("credentials", str(made.reply["Arn"])), clock]
        self.accepted = made.outcome == "unreachable"
        if not self.accepted:
            return [_unusable("credentials", made), *([clock] if self._clock_known else [])]
        # Only the default name of the bucket needs STS.
        kind = failed if self._settings.aws.bucket is None else warning
        return [kind("sts", made.message, f"{_ADDRESS}; or set K9_BUCKET")]

    async def dynamodb(self) -> list[Check]:
        """Tables, rights, limits of the account, latency."""
        async with open_client("dynamodb", self._settings) as client:
            began = host.unix_time()
            limits = await attempt(client, "describe_limits")
            clock = host.check_clock(began, host.unix_time(), limits.server_time)
            checks = [] if self._clock_known else [clock]
            if limits.outcome in {"unreachable", "credentials"}:
                return [*checks, _unusable("dynamodb", limits)]
            checks += [
                host.check_account(limits),
                *await check_tables(client, self._settings),
                *await check_rights(client, self._settings, self._key, self._process),
            ]
        embeddings = self._settings.table(tables.EMBEDDINGS.name)
        usable = not any(
            each.status == "failed" and each.name.endswith(embeddings) for each in checks
        )
        if self._calls and usable:
            async with open_dynamo(self._settings) as dynamo:
                timed, latencies = await measure(
                    dynamo, self._settings, self._key, self._calls, writes=self._process != "worker"
                )
            checks += timed
            self.measured += latencies
        return checks

    async def bucket(self) -> list[Check]:
        """The bucket and the rights on it."""
        name = self._settings.aws.bucket
        if name is None and self._account is not None:
            name = names.default_bucket(self._settings.environment, self._account)
        if name is None:
            return [
                failed("bucket", "its name needs the account, which STS tells", "set K9_BUCKET")
            ]
        async with open_client("s3", self._settings) as client:
            return await services.check_bucket(
                client, self._settings, name, self._key, self._process
            )
