"""Restricts the embedded AWS to its owner: `python -m deploy.local.gateway`.

The Host, Origin and signature of every request are checked before ministack gets it. Ministack's
own `AUTH` cannot do this: it does not verify signatures of the account's own key, accepts `test`
and any 12-digit number as that key, and leaves its administrative routes open.
"""

import asyncio
import hmac
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from collections.abc import Set as AbstractSet
from typing import Any
from urllib.parse import parse_qs

import uvicorn
from ministack.core import sigv4

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SERVICES = ("cloudformation", "cognito-idp", "dynamodb", "s3", "sts")
"""The services that K9 calls. No other is served."""
READY_PATH = "/_ministack/ready"
_KEYS_PATH = re.compile(r"/[a-z0-9-]+_[A-Za-z0-9]+/\.well-known/jwks\.json")
_SIGNED_BODY_BYTES_MAX = 32 * 1024 * 1024
"""Twice DynamoDB's limit. A body is read whole to verify its signature, except S3's."""
_EXPIRES_S_MAX = 7 * 24 * 3600
_STATE = frozenset({"cloudformation", "cognito", "dynamodb", "s3"})
"""Services with saved state. A Lambda function that was planted in a state file never runs."""
_SAVE_S_MAX = 120.0
"""A fork that takes longer is killed: another thread may have held a lock that it needs."""
_SAVE_POLL_S = 0.1
_FILES_MAX = 1 << 20
_KEEP_ALIVE_S = 75
_STOP_S = 5
"""How long a stop waits for the requests that are being answered."""
_NEVER_SIGNED = frozenset({"x-amzn-trace-id"})
_PRESIGNED_HEADERS = frozenset(
    {
        b"content-length",
        b"host",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-unmodified-since",
        b"range",
        b"transfer-encoding",
        b"user-agent",
    }
)
"""Unsigned headers of a presigned request. A form's content type would make it another call."""


class Forbidden(Exception):
    """A request is rejected; the message says why."""


class Gateway:
    """An ASGI application that forwards requests signed by its owner, and those for public keys.

    Only requests to one of `hosts` are forwarded, so that no web page can reach it by a name that
    resolves to this machine (DNS rebinding).
    """

    def __init__(self, app: App, hosts: frozenset[str], key_id: str, secret_key: str) -> None:
        self.changed = False
        """A request came that may have changed something; whoever saves the state resets it."""
        self._app = app
        self._hosts = hosts
        self._key_id = key_id
        self._secret_key = secret_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forwards a request, or answers 403."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            scope, receive = await self._checked(scope, receive)
        except Forbidden as error:
            await _send_forbidden(send, str(error))
        else:
            await self._app(scope, receive, _without_cors(send))
            self.changed = self.changed or scope["method"] != "GET"

    async def _checked(self, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
        """The request to forward.

        Raises:
            Forbidden: it is not forwarded.
        """
        headers = _joined(scope["headers"])
        if headers.get("host") not in self._hosts:
            raise Forbidden("this address is not served under that name")
        if "origin" in headers:
            raise Forbidden("web pages have no access to the embedded AWS")
        path = scope["path"]
        if scope["method"] == "GET" and (path == READY_PATH or _KEYS_PATH.fullmatch(path)):
            # Without its other headers, which could make it another call.
            return {**_with_headers(scope, {b"host"}), "query_string": b""}, _body_of(b"", receive)
        query = scope["query_string"].decode("latin-1")
        parameters = parse_qs(query, keep_blank_values=True) if query else {}
        presigned = "X-Amz-Signature" in parameters
        signatures = [name for name, _ in scope["headers"] if name.lower() == b"authorization"]
        if presigned + len(signatures) != 1:
            raise Forbidden("the request is not signed, or signed twice")
        signature, receive = await self._verified(scope, headers, parameters, receive)
        if presigned:
            names = {name.encode() for name in signature.signed_headers.split(";")}
            scope = _with_headers(scope, _PRESIGNED_HEADERS | names)
        return scope, receive

    async def _verified(
        self,
        scope: Scope,
        headers: Mapping[str, str],
        parameters: Mapping[str, list[str]],
        receive: Receive,
    ) -> tuple[sigv4.HeaderSignature, Receive]:
        """The verified signature of a request, and its body."""
        presigned = "authorization" not in headers
        parse = sigv4.parse_query_signature if presigned else sigv4.parse_header_signature
        signature = parse(parameters if presigned else headers)
        if isinstance(signature, tuple):
            raise Forbidden(signature[1])
        if signature.region_set is not None or not hmac.compare_digest(
            signature.access_key_id.encode(), self._key_id.encode()
        ):
            raise Forbidden("the access key is not the one of this stack")
        _check_signed_headers(headers, signature.signed_headers)
        if presigned:
            _check_presigned(signature, parameters)
        elif failure := sigv4.request_time_failure(signature):
            raise Forbidden(failure[1])
        body = b""
        if not presigned and "x-amz-content-sha256" not in headers:
            body = await _read(receive)
            receive = _body_of(body, receive)
        failure = sigv4.header_signature_failure(
            signature,
            self._secret_key,
            scope["method"],
            scope["raw_path"].decode("latin-1"),
            parameters,
            headers,
            body,
            presigned=presigned,
        )
        if failure:
            raise Forbidden(failure[1])
        return signature, receive


def _joined(pairs: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers by lower-case name; repeated ones are joined as in the signature."""
    headers: dict[str, str] = {}
    for name, value in pairs:
        key, text = name.decode("latin-1").lower(), sigv4.decode_header_value(value)
        headers[key] = f"{headers[key]},{text}" if key in headers else text
    return headers


def _with_headers(scope: Scope, names: AbstractSet[bytes]) -> Scope:
    headers = [pair for pair in scope["headers"] if bytes(pair[0]).lower() in names]
    return {**scope, "headers": headers}


def _check_signed_headers(headers: Mapping[str, str], names: str) -> None:
    """Checks that Host and every x-amz header are signed, as AWS requires."""
    signed = set(names.split(";"))
    required = {name for name in headers if name.startswith("x-amz")} - _NEVER_SIGNED
    if unsigned := ({"host"} | required) - signed:
        raise Forbidden(f"headers are not signed: {', '.join(sorted(unsigned))}")


def _check_presigned(signature: sigv4.HeaderSignature, parameters: Mapping[str, list[str]]) -> None:
    if signature.service != "s3":
        raise Forbidden("only URLs of S3 can be presigned")
    expires = parameters.get("X-Amz-Expires", [""])[0]
    if not expires.isascii() or not expires.isdigit() or int(expires) > _EXPIRES_S_MAX:
        raise Forbidden("X-Amz-Expires is not a number of seconds of up to a week")
    try:
        expired = sigv4.presigned_request_is_expired(signature.amz_date, expires)
    except ValueError:
        raise Forbidden("X-Amz-Date is not a time") from None
    if expired:
        raise Forbidden("the URL has expired")


async def _read(receive: Receive) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Forbidden("the client disconnected")
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > _SIGNED_BODY_BYTES_MAX:
            raise Forbidden("the body is too large")
        if not message.get("more_body"):
            return b"".join(chunks)


def _body_of(body: bytes, receive: Receive) -> Receive:
    """A `receive` that repeats a body which was read already."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


def _without_cors(send: Send) -> Send:
    """Removes the CORS headers with which ministack lets every page read its replies."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [
                pair
                for pair in message.get("headers", ())
                if not bytes(pair[0]).lower().startswith(b"access-control-")
            ]
            message = {**message, "headers": headers}
        await send(message)

    return sent


async def _send_forbidden(send: Send, reason: str) -> None:
    """Sends 403 in the format of AWS's JSON errors, which its clients show."""
    error = {"__type": "AccessDeniedException", "message": reason[:500]}
    body = json.dumps(error).encode()
    headers = [
        (b"content-type", b"application/x-amz-json-1.0"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class SavingGateway:
    """Writes ministack's state every few seconds, so that a SIGKILL loses no more than those.

    Left to itself ministack writes at its stop alone. A fork writes what the memory held at its
    moment, while requests are served: it takes seconds.
    """

    def __init__(self, gateway: Gateway, every_s: float, save: Callable[[], None]) -> None:
        self._gateway = gateway
        self._every_s = every_s
        self._save = save
        self._child = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes everything on, and saves from the start to the stop."""
        if scope["type"] != "lifespan":
            await self._gateway(scope, receive, send)
            return
        saving = asyncio.create_task(self._save_changes())

        async def received() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":  # what ministack writes then is newer
                await self._stop(saving)
            return message

        await self._gateway(scope, received, send)

    async def _save_changes(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            if self._gateway.changed:
                self._gateway.changed = False
                await self._save_in_fork()

    async def _save_in_fork(self) -> None:
        try:
            self._child = os.fork()
        except OSError as error:  # too little memory, or too many processes, at this moment
            sys.stderr.write(f"the state was not saved, and is tried again: {error}\n")
            self._gateway.changed = True
            return
        if self._child == 0:
            status = 1
            try:
                os.closerange(3, _FILES_MAX)  # connections end where the parent ends them
                os.nice(10)
                self._save()
                status = 0
            except Exception:  # noqa: BLE001 - a fork must not go on as the parent would
                traceback.print_exc()
            finally:
                os._exit(status)
        deadline = asyncio.get_running_loop().time() + _SAVE_S_MAX
        while True:
            ended, status = os.waitpid(self._child, os.WNOHANG)  # noqa: ASYNC222 - does not block
            if ended:
                break
            if asyncio.get_running_loop().time() > deadline:
                os.kill(self._child, signal.SIGKILL)
            await asyncio.sleep(_SAVE_POLL_S)
        self._child = 0
        if status:
            self._gateway.changed = True  # so that it is tried again

    async def _stop(self, saving: "asyncio.Task[None]") -> None:
        saving.cancel()
        await asyncio.gather(saving, return_exceptions=True)
        if self._child:
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)  # noqa: ASYNC222 - of what was just killed


def serve(app: App, port: int) -> None:
    """Serves ministack, or what stands before it, until SIGTERM, at the address in `BIND_HOST`.

    By uvicorn, in half of the processor time that ministack's own server takes for a request.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn repeats it once it has stopped
    uvicorn.run(
        app,
        host=os.environ["BIND_HOST"],
        port=port,
        log_level="warning",
        date_header=False,  # ministack sends one
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_STOP_S,
    )


def main() -> None:
    """Runs ministack behind the gateway until SIGTERM."""
    # They read their environment when they are imported.
    from ministack import app  # noqa: PLC0415
    from ministack.core import persistence  # noqa: PLC0415

    def save() -> None:
        persistence.save_all(app._build_persistence_save_dict())  # noqa: SLF001 - as at its stop

    for name in app._state_map.keys() - _STATE:  # noqa: SLF001 - there is no setting for it
        del app._state_map[name]  # noqa: SLF001
    port = os.environ["GATEWAY_PORT"]
    names = {"127.0.0.1", "localhost", os.environ.get("GATEWAY_HOST", "localhost")}
    gateway = Gateway(
        app.app,
        frozenset(f"{name}:{port}" for name in names),
        os.environ["AWS_ACCESS_KEY_ID"],
        os.environ["AWS_SECRET_ACCESS_KEY"],
    )
    save_s = float(os.environ.get("GATEWAY_SAVE_S", "0"))
    serve(SavingGateway(gateway, save_s, save) if save_s else gateway, int(port))


if __name__ == "__main__":
    main()
