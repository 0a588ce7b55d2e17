"""Names in what environments may share: a bucket, a Redis, a disk. Each contains the environment.

An environment's name has no slash, colon or dot (`core.settings`), so that no name of one
environment is, or is a prefix of, a name of another.
"""

import re
from pathlib import Path
from typing import Final

_LEGACY: Final = "indexes/"
"""The prefix of all files of releases up to 23e14f8."""


def environment_prefix(environment: str) -> str:
    """The prefix of an environment's files in a bucket; it deletes nothing elsewhere."""
    return f"environments/{environment}/"


def versions_prefix(environment: str, model_version: str) -> str:
    """The prefix of the files of a model version's builds."""
    return f"{environment_prefix(environment)}indexes/{model_version}/"


def version_prefix(environment: str, model_version: str, build_id: str, fence: int) -> str:
    """The prefix of a build's files under a fence, with the slash at the end."""
    return f"{versions_prefix(environment, model_version)}{build_id}/{fence}/"


def imports_prefix(environment: str) -> str:
    """The prefix of the objects that imports read."""
    return f"{environment_prefix(environment)}imports/"


def uploads_prefix(environment: str) -> str:
    """The prefix of the objects that are uploaded for imports; a lifecycle rule removes them."""
    return f"{imports_prefix(environment)}uploads/"


def upload_key(environment: str, import_id: str) -> str:
    """The key of an object that is uploaded for an import."""
    return f"{uploads_prefix(environment)}{import_id}"


def bad_rows_prefix(environment: str, import_id: str) -> str:
    """The prefix of the files with an import's bad rows."""
    return f"{environment_prefix(environment)}import-reports/{import_id}/"


def bad_rows_key(environment: str, import_id: str, fence: int) -> str:
    """The key of the file that the attempt of this fence wrote."""
    return f"{bad_rows_prefix(environment, import_id)}{fence}.jsonl"


def legacy_versions_prefix(model_version: str) -> str:
    """The prefix of a model version's builds in releases up to 23e14f8."""
    return f"{_LEGACY}{model_version}/"


def legacy_version_prefix(model_version: str, build_id: str, fence: int) -> str:
    """The prefix of a build's files in releases up to 23e14f8, whose records name none."""
    return f"{legacy_versions_prefix(model_version)}{build_id}/{fence}/"


def default_bucket(environment: str, account: str) -> str:
    """The bucket that the template makes for an environment."""
    return f"k9-indexes-{environment}-{account}"


def is_default_bucket(environment: str, bucket: str | None) -> bool:
    """Whether a bucket is the environment's own; None stands for the default one."""
    return bucket is None or bool(re.fullmatch(default_bucket(environment, "[0-9]{12}"), bucket))


def queue_name(environment: str) -> str:
    """The list of jobs in Redis, and the prefix of its workers' health key.

    Contains the version of the payload, so that old workers ignore new jobs.
    """
    return f"k9:{environment}:builds:v1"


def job_id(environment: str, *parts: object) -> str:
    """A job's id, which arq's own keys (of its payload, claim and attempts) contain."""
    return ":".join(("k9", environment, *map(str, parts)))


def channel_name(environment: str) -> str:
    """The channel on which changed rows are announced.

    The version is that of the message: old processes ignore new notifications.
    """
    return f"k9:{environment}:changes:v1"


def rate_prefix(environment: str) -> str:
    """What the keys of the rates of callers begin with."""
    return f"k9:{environment}:rates:v1:"


def directory_of(root: Path, environment: str) -> Path:
    """An environment's own directory below one that several share."""
    return root / "environments" / environment


def owns(environment: str, bucket: str | None, prefix: str) -> bool:
    """Whether the files below a prefix belong to an environment, which alone may delete them."""
    if prefix.startswith(environment_prefix(environment)):
        return True
    return prefix.startswith(_LEGACY) and is_default_bucket(environment, bucket)
