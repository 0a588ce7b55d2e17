"""Litestar's request and response, with K9's bodies: JSON and msgpack both ways."""

from collections import Counter
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

import msgspec
from litestar import Request, Response
from litestar.datastructures import State
from litestar.response.base import ASGIResponse

from api.http.context import RequestContext, context_in
from api.http.paths import unescape
from api.http.problems import Reply
from api.wire.fields import Body
from core.errors import FieldError, Invalid, Unreadable
from core.models import Caller
from core.vectors.arrays import Floats, json_floats

T = TypeVar("T")

JSON_ONLY: Final = "json_only"
"""The option of a handler that takes and gives no vectors: it speaks JSON alone."""
_QUERY_FIELDS_MAX: Final = 100
_NAME_SHOWN: Final = 64
"""Characters of a parameter's name in an error."""
JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"


def _bytes(vector: Floats) -> bytes:
    return vector.astype("<f4", copy=False).tobytes()


encode_json: Final = msgspec.json.Encoder(enc_hook=json_floats).encode
encode_msgpack: Final = msgspec.msgpack.Encoder(enc_hook=_bytes).encode


class ApiRequest(Request[Caller | None, None, State]):
    """A request whose body is here: `api.http.hooks.prepare` has read it."""

    @property
    def context(self) -> RequestContext:
        """What the entrypoint put into the scope."""
        return context_in(self.scope)

    @property
    def caller(self) -> Caller:
        """Who asks."""
        return self.context.caller

    @property
    def path_params(self) -> dict[str, Any]:
        """Segments as the client meant them, slashes too."""
        return {name: unescape(value) for name, value in self.scope["path_params"].items()}

    async def body(self) -> bytes:
        """The body without its content coding. Never empty: where none came, `json` says so."""
        return self.context.data or b" "

    async def json(self) -> Any:
        """The Struct that the handler declares as `data`, decoded strictly from JSON or msgpack.

        Raises:
            Unreadable: it cannot be read.
            Invalid: it is not valid.
        """
        context, field = self.context, self.route_handler.parsed_data_field
        if field is None:
            return None
        if not context.data and field.has_default:
            return field.default
        kind: type[Body] = field.origin or field.annotation  # `SearchBody` of `SearchBody[V]`
        return await context.decode(kind.decoding(context.data, msgpack=context.msgpack_in))


def check_query(query: bytes) -> None:
    """Checks that a query string can be read.

    Raises:
        Unreadable: it is not UTF-8, or has too many parameters.
        Invalid: it has a parameter twice, of which only one could be heeded.
    """
    if not query:
        return
    text = query.decode("latin-1")
    try:
        pairs = parse_qsl(
            text, keep_blank_values=True, errors="strict", max_num_fields=_QUERY_FIELDS_MAX
        )
    except ValueError:
        raise Unreadable("the query cannot be read as UTF-8") from None
    for name, count in Counter(name for name, _ in pairs).items():
        if count > 1:
            raise Invalid.of(FieldError(name[:_NAME_SHOWN], "is given more than once"))


class ApiResponse(Response[T]):
    """An answer in JSON, or in msgpack where the caller prefers it and the route has it."""

    def to_asgi_response(
        self, app: Any, request: Request[Any, Any, Any], **options: Any
    ) -> ASGIResponse:
        """Chooses the format."""
        if not isinstance(self.content, bytes):
            json_only = request.route_handler.opt.get(JSON_ONLY)
            packed = not json_only and context_in(request.scope).msgpack_out
            self.media_type = MSGPACK if packed else JSON
        return super().to_asgi_response(app, request, **options)

    def render(self, content: Any, media_type: str, *_: Any) -> bytes:
        """Encodes the content."""
        if content is None or isinstance(content, bytes):
            return content or b""
        return encode_msgpack(content) if media_type == MSGPACK else encode_json(content)


def encoded(context: RequestContext, answer: object) -> Reply:
    """The answer as the caller accepts it."""
    if context.msgpack_out:
        return Reply(200, encode_msgpack(answer), MSGPACK)
    return Reply(200, encode_json(answer), JSON)
