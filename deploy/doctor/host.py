"""This process's machine: its clock, and whether its limits fit K9's settings."""

import os
import resource
import shutil
import time
from datetime import datetime
from pathlib import Path
from typing import Final

from core.settings import Settings
from deploy.aws.attempts import Attempt
from deploy.doctor.report import Check, failed, not_allowed, ok, skipped, warning

_CLOCK_WARNING_S: Final = 2.0
_CLOCK_FAILED_S: Final = 30.0
"""Watermarks from 60 s ahead are refused, and builds and polls overlap by 60 s: half of that, since
two processes may be off in opposite directions."""
_CGROUP_FILES: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_DISK_BYTES_MIN: Final = 1024**3


def check_clock(began: float, ended: float, server_time: datetime | None) -> Check:
    """Compares this machine's clock with AWS's.

    Args:
        began: Unix time before a request, by this machine.
        ended: The same after its answer.
        server_time: The `Date` of the answer, which has whole seconds.
    """
    if server_time is None:
        return skipped("clock", "no answer of AWS had a date")
    ahead_s = (began + ended) / 2 - (server_time.timestamp() + 0.5)
    within_s = 0.5 + (ended - began) / 2
    detail = f"{ahead_s:+.1f} s from AWS's, within {within_s:.1f} s"
    off_s = max(0.0, abs(ahead_s) - within_s)
    advice = "synchronise the clock (chrony, or 169.254.169.123 in a VPC), then restart K9"
    if off_s > _CLOCK_FAILED_S:
        return failed("clock", detail, f"{advice}: changes would be missed")
    if off_s > _CLOCK_WARNING_S:
        return warning("clock", detail, advice)
    return ok("clock", detail)


def check_host(settings: Settings) -> list[Check]:
    """Open files, memory and disk against what the settings allow K9 to use."""
    return [
        _check_files(settings),
        _check_memory(settings),
        _check_disk("cache directory", settings.serving.cache_dir, "K9_CACHE_DIR"),
        _check_disk("work directory", settings.building.work_dir, "K9_WORK_DIR"),
    ]


def _check_files(settings: Settings) -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = settings.http.connections_max + settings.aws.pool_connections * 2 + 256
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return ok("open files", f"up to {soft:,}")
    return warning(
        "open files",
        f"up to {soft:,}, and {settings.http.connections_max:,} connections may be open",
        f"allow {needed:,} (ulimit -n, or `nofile` of the container), or lower K9_CONNECTIONS_MAX",
    )


def _check_memory(settings: Settings) -> Check:
    available = _memory_bytes()
    needed = settings.serving.loaded_bytes_max
    detail = f"{available / 1024**3:.1f} GiB; indexes may take {needed / 1024**3:.1f} GiB"
    if available >= needed:
        return ok("memory", detail)
    return warning(
        "memory",
        detail,
        "set K9_LOADED_BYTES_MAX below the memory of an API process, and K9_INDEX_BYTES_MAX below "
        "that of a worker",
    )


def _memory_bytes() -> int:
    """Of the machine, or of the container if it is given less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP_FILES:
        try:
            return min(total, int(path.read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or `max`
            continue
    return total


def _check_disk(subject: str, directory: Path, variable: str) -> Check:
    existing = directory.absolute()
    try:
        while not existing.exists():
            existing = existing.parent
        free = shutil.disk_usage(existing).free
    except OSError as error:
        return failed(subject, f"{directory}: {error.strerror}", f"set {variable} to another one")
    detail = f"{directory}, {free / 1024**3:.1f} GiB free"
    if not os.access(existing, os.W_OK | os.X_OK):
        return failed(subject, f"{directory} cannot be written", f"set {variable} to another one")
    if free < _DISK_BYTES_MIN:
        return warning(subject, detail, f"free space, or set {variable} to a larger disk")
    return ok(subject, detail)


def check_account(limits: Attempt) -> Check:
    """DynamoDB's limits of the account, from what DescribeLimits came to."""
    subject = "limits of DynamoDB"
    if limits.outcome == "denied":
        return not_allowed(subject, "dynamodb:DescribeLimits")
    if limits.outcome != "ok":
        return skipped(subject, limits.message or limits.code)
    reads = limits.reply.get("AccountMaxReadCapacityUnits", 0)
    writes = limits.reply.get("AccountMaxWriteCapacityUnits", 0)
    return ok(subject, f"the account's tables: {reads:,} read and {writes:,} write units a second")


def unix_time() -> float:
    """Now, by this machine."""
    return time.time()
