"""Names in what environments may share: a bucket, a Redis, a disk. Each has the environment in it.

An environment's name has no slash, colon or dot (`core.settings`), so that no name of one
environment is, or begins, a name of another.
"""

import re
from pathlib import Path
from typing import Final

_EARLY: Final = "indexes/"
"""Below which releases up to 23e14f8 put everything."""


def environment_prefix(environment: str) -> str:
    """Below which an environment's files are in a bucket; it deletes nothing that is elsewhere."""
    return f"environments/{environment}/"


def versions_prefix(environment: str, model_version: str) -> str:
    """Below which the files of a model version's builds are."""
    return f"{environment_prefix(environment)}indexes/{model_version}/"


def version_prefix(environment: str, model_version: str, build_id: str, fence: int) -> str:
    """Where a build's files are put under a fence, with the slash at the end."""
    return f"{versions_prefix(environment, model_version)}{build_id}/{fence}/"


def early_versions_prefix(model_version: str) -> str:
    """Below which releases up to 23e14f8 put the files of a model version's builds."""
    return f"{_EARLY}{model_version}/"


def early_version_prefix(model_version: str, build_id: str, fence: int) -> str:
    """Where releases up to 23e14f8 put a build's files; their records name no prefix."""
    return f"{early_versions_prefix(model_version)}{build_id}/{fence}/"


def default_bucket(environment: str, account: str) -> str:
    """The bucket that the template makes for an environment."""
    return f"k9-indexes-{environment}-{account}"


def is_default_bucket(environment: str, bucket: str | None) -> bool:
    """Whether a bucket is the environment's own; None stands for the default one."""
    return bucket is None or bool(re.fullmatch(default_bucket(environment, "[0-9]{12}"), bucket))


def queue_name(environment: str) -> str:
    """The list of jobs in Redis, and the beginning of its workers' health key.

    Carries the payload's version, so that old workers leave new jobs alone.
    """
    return f"k9:{environment}:builds:v1"


def job_id(environment: str, *parts: object) -> str:
    """A job's id: arq's own keys (its payload, whether it is taken, its tries) are made of it."""
    return ":".join(("k9", environment, *map(str, parts)))


def channel_name(environment: str) -> str:
    """The channel on which changed rows are announced.

    The version is that of the message: old processes ignore new notifications.
    """
    return f"k9:{environment}:changes:v1"


def directory_of(root: Path, environment: str) -> Path:
    """An environment's own directory below one that several may share."""
    return root / "environments" / environment


def owns(environment: str, bucket: str | None, prefix: str) -> bool:
    """Whether files below a prefix are an environment's own, to be removed by it alone."""
    if prefix.startswith(environment_prefix(environment)):
        return True
    return prefix.startswith(_EARLY) and is_default_bucket(environment, bucket)
