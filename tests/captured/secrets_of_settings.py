"""Which settings are secret. Processes that only copy their logs import this, and nothing of K9."""

from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

DIRECTORY = "TEST_LOGS_DIRECTORY"
"""Names the directory of the copies."""
CHARACTERS_MIN = 8
"""What is shorter (`test`) is in any text, and no secret."""
_NAMES = ("K9_CURSOR_KEYS", "K9_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_URLS = ("REDIS_URL",)


def secrets_in(environ: Mapping[str, str]) -> Iterator[str]:
    """The secrets among environment variables."""
    for name in _NAMES:
        for part in environ.get(name, "").split(","):
            if len(part.strip()) >= CHARACTERS_MIN:
                yield part.strip()
    for name in _URLS:
        password = urlsplit(environ.get(name, "")).password or ""
        if len(password) >= CHARACTERS_MIN:
            yield password
