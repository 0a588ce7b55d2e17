"""The token keys of the Cognito pool: fetched, refreshed, and cached on disk.

A flood of tokens with made-up key ids costs one fetch a minute, whoever sends them.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK, PyJWTError

from api.health import Health
from api.serving.background import cancelled
from core import names, telemetry
from core.errors import SettingsError, Unavailable
from core.files import write_atomically
from core.retry import RetryPolicy
from core.settings import Settings

JWKS_BYTES_MAX: Final = 256 * 1024
KEYS_MAX: Final = 64
_RSA_BITS_MIN: Final = 2048
_RSA_BITS_MAX: Final = 8192
"""A huge key makes each verification slow."""
_FETCH_TIMEOUT_S: Final = 5.0
_RETRY: Final = RetryPolicy(first_s=1.0, max_s=60.0, jitter=0.5)
_FILE: Final = "auth-keys.json"

_log = telemetry.logger(__name__)


Jwk = dict[str, Any]
"""One key of a JWKS."""


class _Jwks(msgspec.Struct, frozen=True):
    keys: list[Jwk]


class _CachedKeys(msgspec.Struct, frozen=True):
    url: str
    fetched_at: float
    keys: list[Jwk]


_JWKS: Final = msgspec.json.Decoder(_Jwks)
_CACHED: Final = msgspec.json.Decoder(_CachedKeys)


def public_keys(jwks: Sequence[Jwk]) -> dict[str, RSAPublicKey]:
    """The keys that may verify a token: RSA of 2,048 to 8,192 bits, for signatures, by RS256."""
    found: dict[str, RSAPublicKey] = {}
    for each in jwks[:KEYS_MAX]:
        kid = each.get("kid")
        good = each.get("kty") == "RSA" and each.get("use") == "sig"
        if (
            not good
            or each.get("alg") not in (None, "RS256")
            or not kid
            or not isinstance(kid, str)
        ):
            continue
        try:
            key = PyJWK(each, "RS256").key
        except PyJWTError:
            continue
        if isinstance(key, RSAPublicKey) and _RSA_BITS_MIN <= key.key_size <= _RSA_BITS_MAX:
            found[kid] = key
    return found


class KeyStore:
    """The keys as last fetched. `find` is what a token's verification asks."""

    def __init__(
        self,
        settings: Settings,
        session: aiohttp.ClientSession,
        health: Health,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings.auth
        self._url = jwks_url(settings)
        cache_dir = settings.serving.cache_dir
        self._file = names.directory_of(cache_dir, settings.environment) / _FILE
        self._early_file = cache_dir / _FILE
        """Where releases up to 23e14f8 have it."""
        self._session = session
        self._health = health
        self._clock = clock
        self._monotonic = monotonic
        self._keys: dict[str, RSAPublicKey] = {}
        self._fetched_at = 0.0
        self._fetching: asyncio.Task[bool] | None = None
        self._away = False
        """The last fetch brought nothing."""
        self._asked_at = float("-inf")
        self.generation = 0
        """Grows when a key is withdrawn: what was verified by it has to be verified again."""

    def find(self, kid: str) -> RSAPublicKey | None:
        """The key of that id; None when the pool has none. Waits for nothing.

        An id that is not known starts a fetch in the background, unless one is under way or was
        started for such an id within `auth_unknown_key_fetch_s`.

        Raises:
            Unavailable: the keys are stale: there are none, the last fetch failed, or they are
                older than `auth_unknown_key_fetch_s`. The pool may have a key of that id by now.
        """
        keys = self._current()
        key = keys.get(kid)
        if key is not None:
            return key
        refetch_s = self._settings.auth_unknown_key_fetch_s
        if self._fetching is None and self._monotonic() - self._asked_at >= refetch_s:
            self._asked_at = self._monotonic()
            self._begin_fetch()
        if not keys or self._away or self._clock() - self._fetched_at > refetch_s:
            raise Unavailable("the token keys cannot be fetched", retry_after_s=5)
        return None

    @property
    def fetching(self) -> bool:
        """Whether a fetch is under way."""
        return self._fetching is not None

    async def first_fetch(self) -> None:
        """Waits for one fetch where there are no keys: for a start, before any request."""
        if not self._current():
            await self._fetch()

    async def refresh(self) -> None:
        """Keeps the keys fresh, until cancelled; failed fetches are retried with backoff."""
        failures = 0
        while True:
            if await self._fetch():
                failures = 0
                await asyncio.sleep(self._settings.auth_keys_refresh_s)
            else:
                failures += 1
                await asyncio.sleep(_RETRY.delay_s(failures))

    async def aclose(self) -> None:
        """Ends a fetch that is under way."""
        if self._fetching is not None:
            await cancelled(self._fetching)

    def restore(self) -> None:
        """Takes the keys that an earlier process cached, unless they are too old. Blocks."""
        try:
            file = self._file if self._file.exists() else self._early_file
            cached = _CACHED.decode(file.read_bytes())
        except (OSError, ValueError, RecursionError):
            return
        age_s = self._clock() - cached.fetched_at
        if cached.url == self._url and 0 <= age_s <= self._settings.auth_keys_keep_s:
            self._take(cached.keys, cached.fetched_at)

    def _current(self) -> dict[str, RSAPublicKey]:
        if self._clock() - self._fetched_at > self._settings.auth_keys_keep_s:
            return {}
        return self._keys

    async def _fetch(self) -> bool:
        """One fetch, shared by all who need one meanwhile; whether it brought keys."""
        return await asyncio.shield(self._fetching or self._begin_fetch())

    def _begin_fetch(self) -> asyncio.Task[bool]:
        self._fetching = asyncio.create_task(self._fetch_once())
        self._fetching.add_done_callback(self._fetched)
        return self._fetching

    def _fetched(self, _task: asyncio.Task[bool]) -> None:
        self._fetching = None

    async def _fetch_once(self) -> bool:
        try:
            jwks = await self._read()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RecursionError) as error:
            self._away = True
            self._health.failing("cognito", type(error).__name__)
            _log.warning("token keys not fetched", error=type(error).__name__)
            return False
        self._away = False
        self._health.ok("cognito")
        self._take(jwks, self._clock())
        cached = msgspec.json.encode(_CachedKeys(self._url, self._fetched_at, jwks))
        await asyncio.to_thread(_write_cache, self._file, cached)
        return True

    async def _read(self) -> list[Jwk]:
        timeout = aiohttp.ClientTimeout(total=_FETCH_TIMEOUT_S)
        async with self._session.get(self._url, timeout=timeout, allow_redirects=False) as reply:
            if reply.status != 200:  # noqa: PLR2004 - HTTP's own
                raise ValueError(f"status {reply.status}")
            body = b""
            async for chunk in reply.content.iter_chunked(64 * 1024):
                body += chunk
                if len(body) > JWKS_BYTES_MAX:
                    raise ValueError("too large")
        jwks = _JWKS.decode(body).keys
        if not public_keys(jwks):
            raise ValueError("no usable key")
        return jwks

    def _take(self, jwks: Sequence[Jwk], fetched_at: float) -> None:
        keys = public_keys(jwks)
        if any(keys.get(kid) != key for kid, key in self._keys.items()):
            self.generation += 1
        self._keys = keys
        self._fetched_at = fetched_at


def jwks_url(settings: Settings) -> str:
    """Where the pool publishes its keys.

    Without TLS only from this machine, or from the emulator that has the tables as well: whoever
    could forge its keys could write to its tables.

    Raises:
        SettingsError: neither the address nor the issuer is set, or the address is another one.
    """
    auth = settings.auth
    url = auth.auth_jwks_url or (
        f"{auth.auth_issuer}/.well-known/jwks.json" if auth.auth_issuer else ""
    )
    where = urlsplit(url)
    emulator = urlsplit(settings.aws.endpoint_url or "")
    local = where.scheme == "http" and (
        where.hostname in {"127.0.0.1", "localhost", "::1"}
        or (emulator.scheme == "http" and where.netloc == emulator.netloc)
    )
    if not where.hostname or not (where.scheme == "https" or local):
        raise SettingsError(
            "K9_AUTH_JWKS_URL: an address of https (or http, on this machine or AWS_ENDPOINT_URL's)"
        )
    return url


def _write_cache(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except OSError as error:
        _log.warning("token keys not cached", error=type(error).__name__)


@asynccontextmanager
async def open_keys(settings: Settings, health: Health) -> AsyncIterator[KeyStore]:
    """A key store that is refreshed in the background until the end of the block."""
    async with aiohttp.ClientSession(auto_decompress=False, trust_env=False) as session:
        store = KeyStore(settings, session, health)
        await asyncio.to_thread(store.restore)
        refreshing = asyncio.create_task(store.refresh())
        try:
            await store.first_fetch()
            yield store
        finally:
            await cancelled(refreshing)
            await store.aclose()
