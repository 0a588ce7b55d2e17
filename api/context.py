"""What requests work with: made once a process, when it starts."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from api.auth import Authenticator
from api.health import Health
from api.limits import Admission
from api.serving.catalogue import Catalogue
from api.watching import Watches
from core.resources import Resources
from core.settings import Settings


@dataclass(frozen=True, slots=True)
class Context:
    """All of it."""

    settings: Settings
    resources: Resources
    authenticator: Authenticator
    catalogue: Catalogue
    health: Health
    admission: Admission
    watches: Watches
    threads: ThreadPoolExecutor
    """For searches and bodies that would hold up the event loop; bounded."""
