"""What requests work with: made once a process, when it starts."""

from dataclasses import dataclass

from api.admission.executor import Turns
from api.admission.quotas import Admission, BodyLimits
from api.auth.tokens import Authenticator
from api.build_events import Watches
from api.health import Health
from api.serving.registry import IndexRegistry
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
