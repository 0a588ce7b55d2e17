"""What requests work with: made once a process, when it starts."""

from dataclasses import dataclass

from api.auth import Authenticator
from api.health import Health
from api.limits import Admission, BodyLimits
from api.serving.registry import IndexRegistry
from api.turns import Turns
from api.watching import Watches
from core.resources import Resources
from core.settings import Settings


@dataclass(frozen=True, slots=True)
class Context:
    """All of it."""

    settings: Settings
    resources: Resources
    authenticator: Authenticator
    registry: IndexRegistry
    health: Health
    admission: Admission
    watches: Watches
    body_limits: BodyLimits
    searching: Turns
    """For searches that would hold up the event loop."""
    decoding: Turns
    """For bodies that would."""
