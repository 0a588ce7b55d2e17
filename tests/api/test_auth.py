"""Who gets in, and what for."""

import hashlib
import hmac
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import jwt
import msgspec
import pytest
from jwt.utils import base64url_encode

from api.app import create_app
from tests.api.conftest import MODEL, Service
from tests.api.pool import Pool, new_key
from tests.api.serving import assert_problem, client_of, path_of, started

SEARCH = f"/models/{MODEL}/search"
GOOD = {"product_id": "plain"}


def _hs256(pool: Pool) -> str:
    """Signed with the public key as the secret, which PyJWT would refuse to do."""
    header = base64url_encode(b'{"alg":"HS256","typ":"JWT","kid":"key-1"}')
    claims = base64url_encode(msgspec.json.encode(pool.claims()))
    signature = hmac.new(pool.public_pem(), header + b"." + claims, hashlib.sha256).digest()
    return b".".join((header, claims, base64url_encode(signature))).decode()


def _unsigned(pool: Pool) -> str:
    return jwt.encode(pool.claims(), "", algorithm="none", headers={"kid": "key-1"})


def _stripped(pool: Pool) -> str:
    return pool.token().rpartition(".")[0] + "."


def _other_key(pool: Pool) -> str:
    return jwt.encode(pool.claims(), new_key(), algorithm="RS256", headers={"kid": "key-1"})


def _changed(pool: Pool) -> str:
    header, _, signature = pool.token().split(".")
    claims = base64url_encode(msgspec.json.encode(pool.claims(sub="somebody-else"))).decode()
    return f"{header}.{claims}.{signature}"


def _with(**changes: Any) -> Callable[[Pool], str]:
    return lambda pool: pool.sign(pool.claims(**changes))


def _headed(**headers: Any) -> Callable[[Pool], str]:
    return lambda pool: pool.sign(pool.claims(), **headers)


def _without_kid(pool: Pool) -> str:
    return jwt.encode(pool.claims(), pool.key, algorithm="RS256")


def _rs512(pool: Pool) -> str:
    return jwt.encode(pool.claims(), pool.key, algorithm="RS512", headers={"kid": "key-1"})


_DAY_S = 24 * 3600
"""More than a run of all tests takes: the claims are made when they are collected."""

BAD: dict[str, Callable[[Pool], str]] = {
    "nothing": lambda _: "",
    "no token": lambda _: "hello",
    "dots": lambda _: "..",
    "bytes that are no text": lambda _: "\xff.\xff.\xff",
    "expired": _with(exp=int(time.time()) - 60),
    "without an end": _with(exp=None),
    "ends never": _with(exp=float("inf")),
    "not valid yet": _with(nbf=int(time.time()) + _DAY_S),
    "issued in the future": _with(iat=int(time.time()) + _DAY_S),
    "unsigned": _unsigned,
    "signature cut off": _stripped,
    "HS256 by the public key": _hs256,
    "another key under the same id": _other_key,
    "claims changed": _changed,
    "RS512": _rs512,
    "an unknown key id": _headed(kid="key-9"),
    "no key id": _without_kid,
    "another pool": _with(iss="https://cognito-idp.us-east-1.amazonaws.com/us-east-1_other"),
    "no issuer": _with(iss=None),
    "an ID token": _with(token_use="id", client_id=None, aud="k9-client"),
    "another audience": _with(aud="another-client"),
    "an empty audience": _with(aud=[]),
    "no use": _with(token_use=None),
    "another app client": _with(client_id="stranger"),
    "no app client": _with(client_id=None),
    "nobody": _with(sub=None),
    "an empty subject": _with(sub=""),
    "a subject that is no text": _with(sub=5),
    "a critical extension": _headed(crit=["b64"], b64=True),
    "a key brought along": _headed(jwk={"kty": "RSA"}),
    "an address of keys": _headed(jku="https://evil.test/jwks.json"),
    "far too long": _with(padding="x" * 10_000),
}


@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_token_gets_nowhere(service: Service, kind: str) -> None:
    """It is a 401 that says no more than that, on the fast lane and the other."""
    token = BAD[kind](service.pool)
    async with client_of(service.app) as client:
        headers = {b"authorization": b"Bearer " + token.encode("latin-1")}
        for method, path in (("POST", SEARCH), ("GET", "/models"), ("GET", "/builds/nothing")):
            reply = await client.request(method, path, json=GOOD, headers=headers)
            problem = assert_problem(reply, 401, "unauthenticated")
            assert reply.headers["www-authenticate"] == "Bearer"
            assert "key-" not in problem["detail"]


@pytest.mark.parametrize("header", [None, "", "Bearer", "Basic dXNlcjpwYXNz", "token"])
async def test_without_a_bearer_token_it_is_401(service: Service, header: str | None) -> None:
    """Nothing, half of it, or another scheme."""
    async with client_of(service.app) as client:
        headers = {} if header is None else {"authorization": header}
        reply = await client.post(SEARCH, json=GOOD, headers=headers)
        assert_problem(reply, 401, "unauthenticated")


async def test_a_refused_token_is_not_logged(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor are its parts."""
    token = _with(client_id="stranger")(service.pool)
    async with client_of(service.app, token) as client:
        await client.get("/models")
    written = "".join(capsys.readouterr())
    assert not any(part in written for part in token.split("."))


ROUTES: list[tuple[str, str, str]] = [
    ("POST", SEARCH, "caller"),
    ("GET", path_of(MODEL, "products", "plain", "neighbors"), "caller"),
    ("GET", "/models", "caller"),
    ("GET", f"/models/{MODEL}", "caller"),
    ("GET", path_of(MODEL, "embeddings", "plain"), "reader"),
    ("GET", path_of(MODEL, "embeddings"), "reader"),
    ("GET", path_of(MODEL, "matrix"), "reader"),
    ("GET", path_of(MODEL, "builds"), "reader"),
    ("GET", "/builds/unknown", "reader"),
    ("PUT", path_of(MODEL, "embeddings", "plain"), "operator"),
    ("DELETE", path_of(MODEL, "embeddings", "nothing"), "operator"),
    ("POST", f"/models/{MODEL}/embeddings:batch", "operator"),
    ("POST", path_of(MODEL, "builds"), "operator"),
]
RIGHTS: dict[str, dict[str, Any]] = {
    "caller": {"cognito:groups": ["others"], "scope": "k9/readers openid"},
    "reader": {"cognito:groups": ["readers"]},
    "reader by scope": {"scope": "openid k9/read"},
    "operator": {"cognito:groups": ["operators"]},
    "operator by scope": {"scope": "k9/operate"},
    "a text for groups": {"cognito:groups": "operators"},
}
ORDER = ("caller", "reader", "operator")


@pytest.mark.parametrize("right", RIGHTS)
@pytest.mark.parametrize(("method", "path", "needed"), ROUTES)
async def test_each_route_takes_its_right(
    service: Service, method: str, path: str, needed: str, right: str
) -> None:
    """Without it, 403 comes before anything is said of the body."""
    token = service.pool.token(**RIGHTS[right])
    word = right.partition(" ")[0]
    has = word if word in ORDER else "caller"
    async with client_of(service.app, token) as client:
        reply = await client.request(method, path, content=b"{")
    if ORDER.index(has) < ORDER.index(needed):
        assert_problem(reply, 403, "forbidden")
    else:
        assert reply.status_code not in {401, 403}
        assert reply.status_code < 500


async def test_open_routes_take_no_token(service: Service) -> None:
    """Health and the reference; nothing else."""
    async with client_of(service.app) as client:
        for path in ("/health/live", "/health/ready", "/docs", "/openapi.json"):
            assert (await client.get(path)).status_code == 200
        for path in ("/models", "/builds/x"):
            assert (await client.get(path)).status_code == httpx.codes.UNAUTHORIZED
        for path in ("/metrics", "/schema", "/"):
            assert (await client.get(path)).status_code == httpx.codes.NOT_FOUND


async def test_readiness_gives_names_to_callers_alone(service: Service) -> None:
    """A stranger, or one with a bad token, gets the states; a caller gets what is loaded too."""
    async with client_of(service.app) as stranger, client_of(service.app, "x") as bad:
        for client in (stranger, bad):
            reply = await client.get("/health/ready")
            assert reply.status_code == 200
            assert set(reply.json()) == {"status", "dependencies"}
            assert MODEL not in reply.text
            for dependency in reply.json()["dependencies"].values():
                assert set(dependency) == {"state", "since"}
    async with client_of(service.app, service.pool.token()) as caller:
        body = (await caller.get("/health/ready")).json()
    assert MODEL in body["loaded"]
    assert set(body) == {"status", "dependencies", "loaded", "troubles"}


async def test_a_stranger_takes_no_slot(service: Service) -> None:
    """With all slots taken a request without a token is 401, and a good one 503."""
    http = msgspec.structs.replace(service.settings.http, concurrent_requests_max=1)
    app = create_app(msgspec.structs.replace(service.settings, http=http), service.resources)
    async with started(app), client_of(app) as client:
        context = app.context
        assert context is not None
        context.admission.calls.acquire("someone else")
        try:
            assert_problem(await client.get("/models"), 401, "unauthenticated")
            headers = {"authorization": f"Bearer {service.pool.token()}"}
            assert_problem(await client.get("/models", headers=headers), 503, "overloaded")
        finally:
            context.admission.calls.release("someone else")


async def test_an_unknown_key_id_waits_for_nothing(service: Service, tmp_path: Path) -> None:
    """While the pool hangs a made-up key id costs one fetch, and good tokens hold."""
    serving = msgspec.structs.replace(service.settings.serving, cache_dir=tmp_path)
    app = create_app(msgspec.structs.replace(service.settings, serving=serving), service.resources)
    async with started(app), client_of(app) as client:
        good = {"authorization": f"Bearer {service.pool.token()}"}
        assert (await client.get("/models", headers=good)).status_code == 200
        before = service.pool.requests
        service.pool.held.clear()
        try:
            for number in range(50):
                token = service.pool.sign(service.pool.claims(), kid=f"made-up-{number}")
                reply = await client.get("/models", headers={"authorization": f"Bearer {token}"})
                assert reply.status_code in {401, 503}
            assert (await client.get("/models", headers=good)).status_code == 200
            assert service.pool.requests <= before + 1
        finally:
            service.pool.held.set()
