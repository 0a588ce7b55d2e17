"""Token keys and tokens remembered: what is fetched, how often, and what is forgotten."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from api.auth.keys import KeyStore, jwks_url, public_keys
from api.auth.tokens import Authenticator, check_settings
from api.health import Health
from core.errors import SettingsError, Unauthenticated, Unavailable
from core.settings import Auth, Aws, Serving, Settings
from tests.api.pool import CLIENT_ID, Pool, jwk, new_key, running_pool


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


def _settings(pool: Pool, cache: Path, **changes: float) -> Settings:
    auth = Auth(auth_issuer=pool.issuer, auth_jwks_url=pool.url, auth_client_ids=(CLIENT_ID,))
    auth = msgspec.structs.replace(auth, **changes)
    return Settings(auth=auth, serving=Serving(cache_dir=cache))


@asynccontextmanager
async def _store(settings: Settings, clock: Clock) -> AsyncIterator[KeyStore]:
    async with aiohttp.ClientSession() as session:
        store = KeyStore(settings, session, Health(), clock=clock, monotonic=clock)
        yield store
        await store.aclose()


async def test_a_flood_of_unknown_keys_is_one_fetch_a_minute(tmp_path: Path) -> None:
    """Whoever sends them; and a new key is found once it has been fetched."""
    clock = Clock()
    async with running_pool() as pool, _store(_settings(pool, tmp_path), clock) as store:
        await store.first_fetch()
        for number in range(200):
            assert store.find(f"made-up-{number}") is None
        await until(lambda: pool.requests == 2 and not store.fetching)
        pool.keys.append(jwk(new_key(), "key-2"))
        for _ in range(200):
            assert store.find("key-2") is None
        assert not store.fetching
        clock.now += 61
        for number in range(200):
            with pytest.raises(Unavailable):
                store.find(f"made-up-{number}")
        await until(lambda: known(store, "key-2"))
        assert pool.requests == 3


async def test_a_key_that_is_new_is_found_after_its_first_token(tmp_path: Path) -> None:
    """The keys are fetched for it in the background, though they are fresh."""
    async with running_pool() as pool, _store(_settings(pool, tmp_path), Clock()) as store:
        await store.first_fetch()
        pool.keys.append(jwk(new_key(), "key-2"))
        assert store.find("key-2") is None
        await until(lambda: known(store, "key-2"))
        assert pool.requests == 2


async def test_a_start_waits_for_one_fetch(tmp_path: Path) -> None:
    """Which callers share, and which is none where keys are there."""
    async with running_pool() as pool, _store(_settings(pool, tmp_path), Clock()) as store:
        await asyncio.gather(*(store.first_fetch() for _ in range(50)))
        assert store.find("key-1") is not None
        await store.first_fetch()
        assert pool.requests == 1


async def test_without_any_keys_nothing_can_be_said(tmp_path: Path) -> None:
    """It is no fault of the token: unavailable, and not unauthenticated."""
    async with running_pool() as pool, _store(_settings(pool, tmp_path), Clock()) as store:
        pool.status = 500
        with pytest.raises(Unavailable):
            store.find("key-1")


async def test_kept_keys_are_good_for_a_day(tmp_path: Path) -> None:
    """On disk for the next start, and in memory while no new ones can be had; then no more."""
    clock = Clock()
    async with running_pool() as pool:
        settings = _settings(pool, tmp_path)
        async with _store(settings, clock) as store:
            await store.first_fetch()
        pool.status = 500
        clock.now += 86_000
        async with _store(settings, clock) as store:
            store.restore()
            assert store.find("key-1") is not None
            clock.now += 1_000
            with pytest.raises(Unavailable):
                store.find("key-1")
        async with _store(settings, clock) as store:
            store.restore()
            with pytest.raises(Unavailable):
                store.find("key-1")


async def test_kept_keys_of_another_pool_or_broken_ones_are_not_taken(tmp_path: Path) -> None:
    """The file is read as if anyone had written it."""
    async with running_pool() as pool, running_pool() as other:
        async with _store(_settings(pool, tmp_path), Clock()) as store:
            await store.first_fetch()
        other.status = 500
        async with _store(_settings(other, tmp_path), Clock()) as store:
            store.restore()
            with pytest.raises(Unavailable):
                store.find("key-1")
        (kept,) = tmp_path.rglob("auth-keys.json")  # noqa: ASYNC240 - a file or two
        early = tmp_path / kept.name
        kept.rename(early)
        async with _store(_settings(pool, tmp_path), Clock()) as store:
            store.restore()  # from where an earlier release kept them
            assert store.find("key-1") is not None
        early.write_bytes(b"[" * 100_000)
        async with _store(_settings(pool, tmp_path), Clock()) as store:
            store.restore()
            with pytest.raises(Unavailable):
                store.find("key-1")


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"keys": []}', b'{"keys": 5}', b"[" * 300_000, b'{"keys": [{}]}']
)
async def test_an_answer_that_is_no_key_set_changes_nothing(tmp_path: Path, body: bytes) -> None:
    """The keys that were there stay good."""
    clock = Clock()
    async with running_pool() as pool, _store(_settings(pool, tmp_path), clock) as store:
        await store.first_fetch()
        pool.body = body
        clock.now += 61
        with pytest.raises(Unavailable):
            store.find("key-2")
        await until(lambda: pool.requests == 2 and not store.fetching)
        with pytest.raises(Unavailable):
            store.find("key-2")
        assert store.find("key-1") is not None


def test_only_keys_that_may_verify_are_taken() -> None:
    """RSA of 2,048 bits or more, for signatures, by RS256."""
    good = jwk(new_key(), "good")
    bad = [
        jwk(new_key(1024), "short"),
        good | {"kid": "for encryption", "use": "enc"},
        good | {"kid": "for anything", "use": None},
        good | {"kid": "by another algorithm", "alg": "RS512"},
        good | {"kid": "symmetric", "kty": "oct"},
        good | {"kid": ""},
        good | {"kid": "broken", "n": "*"},
        good | {"kid": "even", "e": "Ag"},
    ]
    assert set(public_keys([good, *bad])) == {"good"}


async def test_a_token_is_remembered_until_it_ends(tmp_path: Path) -> None:
    """And no longer; the cache has a bound, and loses what was verified longest ago."""
    clock = Clock()
    async with running_pool() as pool:
        settings = _settings(pool, tmp_path, auth_cache_tokens=2)
        async with _store(settings, clock) as store:
            await store.first_fetch()
            auth = Authenticator(settings, store)
            tokens = [f"Bearer {pool.token(sub=name)}".encode() for name in "abc"]
            for token in tokens:
                assert auth.caller(token) == auth.remembered(token)
            assert auth.remembered(tokens[0]) is None
            assert auth.remembered(tokens[2]) is not None
            late = Authenticator(settings, store, clock=clock)
            kept = late.caller(tokens[0])
            clock.now = kept.expires_at + 1
            assert late.remembered(tokens[0]) is None


async def test_a_withdrawn_key_takes_its_tokens_with_it(tmp_path: Path) -> None:
    """What it verified has to be verified again, and is refused."""
    clock = Clock()
    async with running_pool() as pool:
        settings = _settings(pool, tmp_path)
        async with _store(settings, clock) as store:
            await store.first_fetch()
            auth = Authenticator(settings, store)
            token = f"Bearer {pool.token()}".encode()
            auth.caller(token)
            pool.keys = [jwk(new_key(), "key-2")]
            clock.now += 61
            await until(lambda: known(store, "key-2"))
            with pytest.raises(Unauthenticated):
                auth.caller(token)


def test_settings_by_which_no_token_could_hold_are_refused(tmp_path: Path) -> None:
    """At the start, naming the variable."""
    with pytest.raises(SettingsError, match="K9_AUTH_ISSUER"):
        check_settings(Settings())
    with pytest.raises(SettingsError, match="K9_AUTH_CLIENT_IDS"):
        check_settings(Settings(auth=Auth(auth_issuer="https://x")))


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        (None, "http://aws:4566/pool/.well-known/jwks.json"),
        ("http://aws:4566", "http://aws:80/pool/.well-known/jwks.json"),
        ("http://aws:4566", "http://other:4566/pool/.well-known/jwks.json"),
        ("https://aws:4566", "http://aws:4566/pool/.well-known/jwks.json"),
        ("http://aws:4566", "ftp://aws:4566/pool/.well-known/jwks.json"),
    ],
)
def test_keys_come_over_tls_or_from_the_emulator_of_the_tables(
    endpoint: str | None, address: str
) -> None:
    """Nobody on the network may exchange them, unless the tables are as open already."""
    auth = Auth(auth_issuer="https://issuer/pool", auth_jwks_url=address)
    with pytest.raises(SettingsError, match="K9_AUTH_JWKS_URL"):
        jwks_url(Settings(auth=auth, aws=Aws(endpoint_url=endpoint)))
    same = "http://aws:4566/pool/.well-known/jwks.json"
    auth = msgspec.structs.replace(auth, auth_jwks_url=same)
    assert jwks_url(Settings(auth=auth, aws=Aws(endpoint_url="http://aws:4566"))) == same


async def test_a_key_that_may_be_new_is_not_said_to_be_none(tmp_path: Path) -> None:
    """With the pool away nobody knows whether it has a new key: the token is not refused for it."""
    clock = Clock()
    async with running_pool() as pool, _store(_settings(pool, tmp_path), clock) as store:
        await store.first_fetch()
        pool.status = 500
        clock.now += 61
        for _ in range(2):
            with pytest.raises(Unavailable):
                store.find("key-2")
            await until(lambda: not store.fetching)
        assert store.find("key-1") is not None
        pool.status = 200
        clock.now += 61
        with pytest.raises(Unavailable):
            store.find("key-2")
        await until(lambda: not store.fetching)
        assert store.find("key-2") is None


async def test_a_pool_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    """No request waits for it; the fetch goes on for those that come later."""
    async with running_pool() as pool, _store(_settings(pool, tmp_path), Clock()) as store:
        pool.held.clear()
        for _ in range(100):
            with pytest.raises(Unavailable):
                store.find("key-1")
        pool.held.set()
        await until(lambda: known(store, "key-1"))
        assert pool.requests == 1


def known(store: KeyStore, kid: str) -> bool:
    """Whether a key is there."""
    try:
        return store.find(kid) is not None
    except Unavailable:
        return False


async def until(holds: Callable[[], bool]) -> None:
    """Waits for it."""
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - a fetch has no event
            await asyncio.sleep(0.005)


async def test_an_audience_is_one_that_settings_name(tmp_path: Path) -> None:
    """A token without an `aud` is good, one that carries another is not."""
    async with running_pool() as pool:
        settings = _settings(pool, tmp_path)
        auth = msgspec.structs.replace(settings.auth, auth_resource_servers=("https://api.test",))
        settings = msgspec.structs.replace(settings, auth=auth)
        async with _store(settings, Clock()) as store:
            await store.first_fetch()
            checked = Authenticator(settings, store)
            for aud in (None, CLIENT_ID, "https://api.test", ["x", "https://api.test"]):
                token = f"Bearer {pool.token(aud=aud)}".encode()
                assert checked.caller(token).user_id == "user-1"
            bad: list[Any] = ["other", "", [], ["other"], 5, [CLIENT_ID + "x"], {CLIENT_ID: 1}]
            for aud in bad:
                with pytest.raises(Unauthenticated):
                    checked.caller(f"Bearer {pool.token(aud=aud)}".encode())
