"""What strangers try on the embedded stack: pages of a foreign origin, and local users."""

import base64
import io
import socket
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import msgspec
from botocore.auth import S3SigV4QueryAuth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from deploy.local.files import RunningStack

FOREIGN = "http://evil.example"
LIST_TABLES = {
    "X-Amz-Target": "DynamoDB_20120810.ListTables",
    "Content-Type": "application/x-amz-json-1.0",
}
LAMBDA = "/2015-03-31/functions"
_COGNITO = "AWSCognitoIdentityProviderService"
_REGION = "us-east-1"
_READS_SECRETS = """
import pathlib
def handler(event, context):
    return pathlib.Path(event["path"]).read_text()
"""


@dataclass(frozen=True)
class Target:
    """A running stack, and what only its owner knows."""

    endpoint: str
    key_id: str
    secret_key: str
    bucket: str
    pool_id: str
    client_id: str
    api: str
    redis: str
    secrets_file: Path
    secrets: tuple[str, ...]
    """What no reply may hold."""

    @classmethod
    def of(cls, stack: RunningStack, data: Path) -> "Target":
        """The stack that runs on a data directory."""
        environ = stack.environ
        path = data / "secrets.json"
        kept: dict[str, str] = msgspec.json.decode(path.read_bytes())
        return cls(
            endpoint=environ["AWS_ENDPOINT_URL"],
            key_id=environ["AWS_ACCESS_KEY_ID"],
            secret_key=environ["AWS_SECRET_ACCESS_KEY"],
            bucket=environ["K9_BUCKET"],
            pool_id=stack.pool_id,
            client_id=stack.client_id,
            api=environ["K9_URL"],
            redis=environ["REDIS_URL"],
            secrets_file=path,
            secrets=tuple(kept.values()),
        )


@dataclass(frozen=True)
class Attempt:
    """One request to the embedded AWS that must be refused."""

    name: str
    method: str = "POST"
    path: str = "/"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    refusals: tuple[int, ...] = (401, 403)


def signed(target: Target, attempt: Attempt, key_id: str, secret_key: str) -> Attempt:
    """The attempt with a signature of these credentials over all its headers."""
    request = AWSRequest(
        attempt.method,
        target.endpoint + attempt.path,
        headers=dict(attempt.headers),
        data=attempt.body,
    )
    SigV4Auth(Credentials(key_id, secret_key), "dynamodb", _REGION).add_auth(request)
    return Attempt(
        attempt.name, attempt.method, attempt.path, dict(request.headers.items()), attempt.body
    )


def presigned(target: Target, key: str, expires_s: int = 300) -> str:
    """Path and query of a URL that reads an object."""
    request = AWSRequest("GET", f"{target.endpoint}/{target.bucket}/{key}")
    credentials = Credentials(target.key_id, target.secret_key)
    S3SigV4QueryAuth(credentials, "s3", _REGION, expires=expires_s).add_auth(request)
    return str(request.url).removeprefix(target.endpoint)


def attempts(target: Target) -> Iterator[Attempt]:
    """Each is to be refused. The last one would empty the emulator."""
    yield from _of_strangers(target)
    yield from _of_pages(target)
    yield from _with_a_signature(target)
    yield Attempt("empty the emulator", path="/_ministack/reset")


def _of_strangers(target: Target) -> Iterator[Attempt]:
    """Of local users, who send what they like."""
    tables = Attempt("list tables", headers=LIST_TABLES)
    yield tables
    for name, key_id, secret_key in (
        ("the well-known key", "test", "test"),
        ("an account number for a key", "000000000000", "test"),
        ("the right key and a guessed secret", target.key_id, "guessed"),
    ):
        named = Attempt(f"list tables with {name}", headers=LIST_TABLES)
        yield signed(target, named, key_id, secret_key)
    yield Attempt("list buckets", "GET", body=b"")
    yield Attempt("list objects", "GET", f"/{target.bucket}?list-type=2", body=b"")
    yield Attempt("list secrets", headers={"X-Amz-Target": "secretsmanager.ListSecrets"} | _json())
    yield Attempt("create a function", path=LAMBDA, headers=_json(), body=function("stranger"))
    yield Attempt(
        "sign up",
        headers={"X-Amz-Target": f"{_COGNITO}.SignUp"} | _json(),
        body=msgspec.json.encode(
            {"ClientId": target.client_id, "Username": "eve", "Password": "Aa1!aaaaaaaa"}
        ),
    )
    yield Attempt(
        "log in",
        headers={"X-Amz-Target": f"{_COGNITO}.InitiateAuth"} | _json(),
        body=msgspec.json.encode(
            {
                "ClientId": target.client_id,
                "AuthFlow": "USER_PASSWORD_AUTH",
                "AuthParameters": {"USERNAME": "operator", "PASSWORD": "guessed"},
            }
        ),
    )
    yield Attempt("change the emulator's settings", path="/_ministack/config")
    yield Attempt("list services", "GET", "/_ministack/health", body=b"")
    path = "/us-east-1_none/.well-known/jwks.json"
    yield Attempt("reach DynamoDB by the keys' path", "GET", path, LIST_TABLES, b"", (404,))


def _of_pages(target: Target) -> Iterator[Attempt]:
    """Of pages of a foreign origin, with a preflight or as browsers send without asking."""
    jwks = f"/{target.pool_id}/.well-known/jwks.json"
    yield Attempt(
        "ask before a request (preflight)",
        "OPTIONS",
        headers={
            "Origin": FOREIGN,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "x-amz-target",
        },
        body=b"",
    )
    yield Attempt(
        "create a function without a preflight",
        path=LAMBDA,
        headers={"Origin": FOREIGN, "Content-Type": "text/plain"},
        body=function("page"),
    )
    yield Attempt("list buckets from a page", "GET", headers={"Origin": FOREIGN}, body=b"")
    yield Attempt("read the pool's keys from a page", "GET", jwks, {"Origin": FOREIGN}, b"")
    host = {"Host": f"evil.example:{urlsplit(target.endpoint).port}"}
    yield Attempt("read the pool's keys by DNS rebinding", "GET", jwks, host, b"")
    yield Attempt("list buckets by DNS rebinding", "GET", headers=host, body=b"")


def _with_a_signature(target: Target) -> Iterator[Attempt]:
    """Of someone who came by a signed request or URL, and uses it from or for elsewhere."""

    def own(name: str, headers: dict[str, str]) -> Attempt:
        tables = Attempt(name, headers=LIST_TABLES | headers)
        return signed(target, tables, target.key_id, target.secret_key)

    yield own("list tables from a page, well signed", {"Origin": FOREIGN})
    yield own(
        "list tables by DNS rebinding, well signed",
        {"Host": f"evil.example:{urlsplit(target.endpoint).port}"},
    )
    plain = own("change a signed body", {})
    yield Attempt(plain.name, headers=plain.headers, body=b'{"Limit": 1}')
    yield Attempt(
        "turn a presigned URL into a call of DynamoDB",
        "GET",
        presigned(target, "x"),
        LIST_TABLES,
        b"",
    )
    url = presigned(target, "x")
    yield Attempt("use a presigned URL from a page", "GET", url, {"Origin": FOREIGN}, b"")
    yield Attempt("write by a presigned URL that reads", "PUT", url, body=b"x")
    yield Attempt("use a presigned URL for another object", "GET", url.replace("/x?", "/y?"))
    yield Attempt("use an expired URL", "GET", presigned(target, "x", expires_s=-1), body=b"")


def _json() -> dict[str, str]:
    return {"Content-Type": "application/x-amz-json-1.1"}


def function(name: str) -> bytes:
    """A request for a Lambda that gives back the file it is told of."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("reader.py", _READS_SECRETS)
    return msgspec.json.encode(
        {
            "FunctionName": name,
            "Runtime": "python3.12",
            "Role": "arn:aws:iam::000000000000:role/any",
            "Handler": "reader.handler",
            "Code": {"ZipFile": base64.b64encode(packed.getvalue()).decode()},
        }
    )


def came_through(
    target: Target, reply: httpx.Response, refusals: tuple[int, ...] = (401, 403)
) -> str | None:
    """Why a reply is no refusal; None where it is one."""
    if reply.status_code not in refusals:
        return f"answered with {reply.status_code}"
    shared = [name for name in reply.headers if name.startswith("access-control-")]
    if shared:
        return f"answered with {', '.join(shared)}"
    if any(secret in reply.text for secret in target.secrets):
        return "answered with a secret"
    return None


def send(client: httpx.Client, target: Target, attempt: Attempt) -> str | None:
    """Tries; why it came through, None where it was refused."""
    reply = client.request(
        attempt.method,
        target.endpoint + attempt.path,
        headers=dict(attempt.headers),
        content=attempt.body,
    )
    return came_through(target, reply, attempt.refusals)


def read_by_lambda(client: httpx.Client, target: Target) -> str | None:
    """Runs a Lambda as the developer, which reads their secrets: None where it cannot."""
    made = client.post(
        target.endpoint + LAMBDA, content=function("reader"), headers={"Content-Type": "text/plain"}
    )
    refused = came_through(target, made)
    if refused is None:
        return None
    answer = client.post(
        f"{target.endpoint}{LAMBDA}/reader/invocations", json={"path": str(target.secrets_file)}
    )
    read = any(secret in answer.text for secret in target.secrets)
    return "read secrets.json" if read else refused


def ask_valkey(target: Target) -> str | None:
    """Writes without a password: None where it is refused, and where a page's request is too."""
    where = urlsplit(target.redis)
    posted = b"POST / HTTP/1.1\r\nHost: x\r\n\r\nSET page 1\r\n"
    for request in (b"SET stranger 1\r\n", posted):
        with socket.create_connection((where.hostname or "", where.port or 0), timeout=5) as sent:
            sent.sendall(request)
            reply = sent.recv(4096)
        if reply and not reply.startswith(b"-NOAUTH"):
            return f"answered with {reply[:40]!r}"
    return None


class Owner:
    """The stack's own developer, who sees what strangers left."""

    def __init__(self, client: httpx.Client, target: Target) -> None:
        self.client = client
        self._target = target

    def tables(self) -> list[str]:
        """The names of the tables."""
        reply = self._ask(Attempt("", headers=LIST_TABLES))
        reply.raise_for_status()
        names: list[str] = reply.json()["TableNames"]
        return names

    def functions(self) -> list[str]:
        """The names of the Lambdas, where there are any at all."""
        reply = self._ask(Attempt("", "GET", f"{LAMBDA}/", body=b""))
        found = reply.json() if reply.status_code == 200 else {}
        return [entry["FunctionName"] for entry in found.get("Functions", ())]

    def _ask(self, attempt: Attempt) -> httpx.Response:
        own = signed(self._target, attempt, self._target.key_id, self._target.secret_key)
        url = self._target.endpoint + own.path
        return self.client.request(own.method, url, headers=dict(own.headers), content=own.body)


@contextmanager
def owned(target: Target) -> Iterator[Owner]:
    """The owner of a stack, with a client that strangers may use too."""
    with httpx.Client(timeout=30.0, trust_env=False) as client:
        yield Owner(client, target)


def try_all(target: Target) -> list[tuple[str, str | None]]:
    """Each attempt by its name, with why it came through; None where it was refused."""
    with owned(target) as owner:
        before = owner.tables()
        tried = [("write to Valkey without its password", ask_valkey(target))]
        tried.append(("read secrets.json by a Lambda", read_by_lambda(owner.client, target)))
        tried += [(each.name, send(owner.client, target, each)) for each in attempts(target)]
        kept = before and owner.tables() == before and not owner.functions()
        return [*tried, ("change what there is", None if kept else "changed")]
