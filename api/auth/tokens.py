"""Cognito access tokens → `Caller`, as RFC 8725 says."""

import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from api.auth.keys import KeyStore
from core.errors import SettingsError, Unauthenticated
from core.models import Caller
from core.settings import Settings

_ALGORITHMS: Final = ["RS256"]
_SCHEME: Final = b"bearer "
_OPTIONS: Final[Any] = {
    "require": ["exp", "iss", "sub"],
    "verify_signature": True,
    "verify_exp": True,
    "verify_iat": True,
    "verify_nbf": True,
    "verify_iss": True,
    "verify_aud": False,  # Cognito's access tokens have `client_id` in its place; see `_audience`
}
_HEADER_PARAMETERS: Final = frozenset({"alg", "kid", "typ"})
"""The only header parameters allowed: no `crit`, no embedded key (`jwk`, `jku`, `x5u`, `x5c`)."""

_MISSING: Final = "send an access token: `Authorization: Bearer <token>`"
_REFUSED: Final = "the token is not valid here, or has ended; get a new one"


class Authenticator:
    """Verifies tokens, and caches valid ones until they expire."""

    def __init__(
        self, settings: Settings, keys: KeyStore, *, clock: Callable[[], float] = time.time
    ) -> None:
        """Takes the issuer, the clients and the limits from settings: see `check_settings`."""
        self._settings = settings.auth
        self._audiences = {*self._settings.auth_client_ids, *self._settings.auth_resource_servers}
        self._keys = keys
        self._clock = clock
        self._seen: dict[bytes, Caller] = {}
        self._generation = keys.generation

    def remembered(self, authorization: bytes) -> Caller | None:
        """The caller of a header that was verified before and is still valid. Costs 2 µs."""
        caller = self._seen.get(sha256(authorization).digest())
        if caller is None or self._generation != self._keys.generation:
            return None
        return caller if caller.expires_at > self._clock() else None

    def caller(self, authorization: bytes | None) -> Caller:
        """The caller of an `Authorization` header.

        Raises:
            Unauthenticated: it has no valid token.
            Unavailable: there are no keys to verify it with.
        """
        if authorization is None:
            raise Unauthenticated(_MISSING)
        if len(authorization) > self._settings.auth_token_bytes_max + len(_SCHEME):
            raise Unauthenticated(_REFUSED)
        caller = self.remembered(authorization)
        if caller is None:
            if not authorization.lower().startswith(_SCHEME):
                raise Unauthenticated(_MISSING)
            caller = self._verify(authorization[len(_SCHEME) :].strip())
            self._remember(authorization, caller)
        return caller

    def _verify(self, token: bytes) -> Caller:
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise Unauthenticated(_REFUSED) from None
        kid = header.get("kid")
        if (
            header.get("alg") not in _ALGORITHMS
            or not isinstance(kid, str)
            or not _HEADER_PARAMETERS.issuperset(header)
        ):
            raise Unauthenticated(_REFUSED)
        key = self._keys.find(kid)
        if key is None:
            raise Unauthenticated(_REFUSED)
        return self._checked(token, key)

    def _checked(self, token: bytes, key: RSAPublicKey) -> Caller:
        settings = self._settings
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=_ALGORITHMS,
                issuer=settings.auth_issuer,
                leeway=settings.auth_leeway_s,
                options=_OPTIONS,
            )
        except (jwt.PyJWTError, ValueError, OverflowError, RecursionError):
            raise Unauthenticated(_REFUSED) from None
        if (
            claims.get("token_use") != "access"
            or claims.get("client_id") not in settings.auth_client_ids
            or not claims["sub"]
            or not self._audience(claims)
        ):
            raise Unauthenticated(_REFUSED)
        return caller_of(claims, settings.auth_leeway_s)

    def _audience(self, claims: Mapping[str, Any]) -> bool:
        """Whether the token is meant for K9: it has no `aud`, or one that settings name."""
        if "aud" not in claims:
            return True
        aud = claims["aud"]
        names = _words([aud] if isinstance(aud, str) else aud)
        return not names.isdisjoint(self._audiences)

    def _remember(self, authorization: bytes, caller: Caller) -> None:
        if self._generation != self._keys.generation:
            self._seen.clear()
            self._generation = self._keys.generation
        while len(self._seen) >= self._settings.auth_cache_tokens:
            del self._seen[next(iter(self._seen))]  # the one verified longest ago
        self._seen[sha256(authorization).digest()] = caller


def check_settings(settings: Settings) -> None:
    """Checks that some token could be valid.

    Raises:
        SettingsError: naming what is missing.
    """
    if not settings.auth.auth_issuer:
        raise SettingsError("K9_AUTH_ISSUER is missing: the address of the user pool")
    if not settings.auth.auth_client_ids:
        raise SettingsError("K9_AUTH_CLIENT_IDS is missing: the app clients whose tokens are good")


def caller_of(claims: Mapping[str, Any], leeway_s: int = 0) -> Caller:
    """Rights from verified claims, by group or by OAuth scope."""
    groups = _words(claims.get("cognito:groups"))
    scope = claims.get("scope")
    scopes = _words(scope.split() if isinstance(scope, str) else None)
    operator = "operators" in groups or "k9/operate" in scopes
    return Caller(
        user_id=claims["sub"],
        expires_at=float(claims["exp"]) + leeway_s,
        reader=operator or "readers" in groups or "k9/read" in scopes,
        operator=operator,
        rights=frozenset(
            {
                f"caller:{claims['sub']}",
                *(f"group:{group}" for group in groups),
                *(f"scope:{each}" for each in scopes),
            }
        ),
    )


def _words(claim: object) -> frozenset[str]:
    if not isinstance(claim, list):
        return frozenset()
    return frozenset(word for word in claim if isinstance(word, str))
