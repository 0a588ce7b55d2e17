"""A user pool of our own: its keys over real HTTP, and tokens of every kind."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

CLIENT_ID = "k9-client"


def new_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """An RSA key."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def jwk(key: rsa.RSAPrivateKey, kid: str, **changes: Any) -> dict[str, Any]:
    """The public half, as a pool publishes it."""
    numbers = key.public_key().public_numbers()
    return {
        "kty": "RSA",
        "use": "sig",
        "alg": "RS256",
        "kid": kid,
        "n": _base64(numbers.n),
        "e": _base64(numbers.e),
    } | changes


def _base64(number: int) -> str:
    data = number.to_bytes((number.bit_length() + 7) // 8)
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Pool:
    """The pool, and how often its keys were asked for."""

    def __init__(self) -> None:
        self.key = new_key()
        self.keys: list[dict[str, Any]] = [jwk(self.key, "key-1")]
        self.body: bytes | None = None
        self.status = 200
        self.requests = 0
        self.url = ""
        self.held = asyncio.Event()
        """Answers wait until it is set."""
        self.held.set()

    @property
    def issuer(self) -> str:
        """What tokens name as their issuer, which is not where the keys are."""
        return "https://cognito-idp.us-east-1.amazonaws.com/us-east-1_test"

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Claims of a good access token; None takes one away."""
        now = int(time.time())
        claims = {
            "sub": "user-1",
            "iss": self.issuer,
            "token_use": "access",
            "client_id": CLIENT_ID,
            "iat": now - 1,
            "exp": now + 3600,
            "scope": "openid",
        } | changes
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, *groups: str, **changes: Any) -> str:
        """A good access token of a member of these groups."""
        changes = {"cognito:groups": list(groups)} | changes
        return self.sign(self.claims(**changes))

    def sign(self, claims: dict[str, Any], **headers: Any) -> str:
        """Any claims, signed by the pool's key."""
        return jwt.encode(claims, self.key, algorithm="RS256", headers={"kid": "key-1"} | headers)

    def public_pem(self) -> bytes:
        """What someone would try as a secret for HS256."""
        return self.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    async def answer(self, _request: web.Request) -> web.Response:
        """Serves the keys."""
        self.requests += 1
        await self.held.wait()
        if self.body is not None:
            return web.Response(body=self.body, status=self.status)
        return web.json_response({"keys": self.keys}, status=self.status)


@asynccontextmanager
async def running_pool() -> AsyncIterator[Pool]:
    """A pool that answers until the end of the block."""
    pool = Pool()
    app = web.Application()
    app.router.add_get("/jwks.json", pool.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    pool.url = f"http://{host}:{port}/jwks.json"
    try:
        yield pool
    finally:
        await runner.cleanup()
