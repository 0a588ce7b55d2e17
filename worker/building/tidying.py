"""After a publish: versions that are kept no longer go, and tombstones that no version needs."""

import asyncio
from collections.abc import Iterable

from core import telemetry
from core.errors import K9Error
from core.repositories.tombstones import Tombstone
from core.resources import Resources

_LIMIT_S = 120.0
"""What is not done by then is left for the next publish."""

_log = telemetry.logger(__name__)


async def tidy(
    resources: Resources, model_version: str, tombstones: Iterable[Tombstone] = ()
) -> bool:
    """Removes what can go now; True where something waits for the end of its grace time.

    Nothing depends on it: whatever fails is logged, and the next publish goes on from there.
    """
    log = _log.bind(model_version=model_version)
    retired = False
    try:
        async with asyncio.timeout(_LIMIT_S):
            kept = await resources.retention.apply(model_version)
            retired = kept.retired
            watermark = kept.watermark or ""
            old = [tombstone for tombstone in tombstones if tombstone.deleted_at < watermark]
            removed = await resources.tombstones.remove(model_version, old)
    except (K9Error, TimeoutError) as error:
        log.warning("not all tidied up", reason=str(error) or type(error).__name__)
    except Exception:
        log.exception("tidying up broke")
    else:
        if removed:
            log.info("tombstones removed", tombstones=removed)
    return retired
