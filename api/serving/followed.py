"""A segment that is kept up to date."""

import asyncio
from datetime import timedelta
from typing import Final

from api.serving.delta import DeltaBuffer
from api.serving.segment import Segment
from api.serving.snapshot import Snapshot
from core.models import parse_timestamp, timestamp
from core.settings import Serving

POLL_GAP_S: Final = 0.5
"""Between two polls of the shards, however many are asked for."""
_STALE_POLLS: Final = 3
"""After so many intervals without a complete poll it is unknown what changed."""


class FollowedSegment:
    """A segment with its delta, and how far the shards were read for it."""

    def __init__(self, segment: Segment, settings: Serving) -> None:
        self.segment = segment
        self.delta = DeltaBuffer(segment)
        self.polled_at = ""
        """When the last complete poll of the shards began; empty before the first one."""
        self.complete_until = 0.0
        """By the event loop's clock: from then on that poll is too old to tell what changed."""
        self._settings = settings

    @property
    def resident_bytes(self) -> int:
        """Memory that both take, about."""
        return self.segment.resident_bytes + self.delta.resident_bytes

    def polled(self, moment: str, since_s: float) -> None:
        """Notes a complete poll that began then; `since_s` is the event loop's clock."""
        self.polled_at = moment
        self.complete_until = since_s + _STALE_POLLS * max(POLL_GAP_S, self._settings.poll_s)

    def snapshot(self) -> Snapshot:
        """What answers now."""
        delta = self.delta.snapshot()
        if self.delta.overflowed:
            return Snapshot(self.segment, delta)
        return Snapshot(
            self.segment,
            delta,
            complete=asyncio.get_running_loop().time() < self.complete_until,
            # The clocks of writers may be behind by as much as a poll reaches back.
            polled_at=earlier(self.polled_at, self._settings.poll_overlap_s),
        )


def earlier(moment: str, seconds: float) -> str:
    """A moment less so many seconds; no moment stays none."""
    if not moment:
        return ""
    return timestamp(parse_timestamp(moment) - timedelta(seconds=seconds))
