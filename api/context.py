"""What requests work with: opened once a process, when it starts."""

from dataclasses import dataclass

from api.admission.executor import FairExecutor
from api.admission.quotas import Admission, BodyLimits
from api.auth.tokens import Authenticator
from api.events import Events
from api.health import Health
from api.serving.registry import IndexRegistry
from core.rates import RateLimiter
from core.resources import Resources
from core.settings import Settings


@dataclass(frozen=True, slots=True)
class AppContext:
    """Dependencies of one API process."""

    settings: Settings
    resources: Resources
    authenticator: Authenticator
    registry: IndexRegistry
    health: Health
    admission: Admission
    rates: RateLimiter | None
    """None where no rates are set."""
    build_events: Events
    import_events: Events
    body_limits: BodyLimits
    searching: FairExecutor
    """For searches that would block the event loop."""
    decoding: FairExecutor
    """For bodies that would."""
