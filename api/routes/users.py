"""Users: each caller's own profile."""

from functools import partial
from typing import Any, Final
from urllib.parse import quote

from litestar import Controller, Request, Response, delete, get, patch, post
from litestar.params import FromPath
from msgspec import UNSET, Raw

from api.http.context import Call, call_in, response
from api.http.guards import BODY
from api.http.idempotency import answer_once, nothing
from api.http.paths import unescape
from api.http.problems import Reply
from api.wire.decoding import Shape
from api.wire.schemas import UserBody, UserItem
from core.models import User
from core.repositories.idempotency import Claim
from core.repositories.users import unknown_user
from core.usecases.documents import check_text

ME: Final = "me"

_FIELDS: Final = ("name", "email", "avatar_url")
Sent = tuple[dict[str, str | None], bytes | None]
"""The fields that were sent, and the preferences if they were among them."""

_body: Final = Shape(UserBody)


class UserController(Controller):
    """UserService."""

    path = "/users"
    tags = ("users",)
    opt = {BODY: "record"}  # noqa: RUF012 - Litestar has no other place for it

    @post("", status_code=201, summary="Create your profile")
    async def create(self, request: Request[Any, Any, Any]) -> Response[UserItem]:
        """Creates the caller's own profile; `user_id` is the token's `sub`."""
        call = call_in(request)

        async def act(claim: Claim | None, sent: Sent) -> User:
            service = call.context.resources.user_service
            return await service.create(call.caller.user_id, *sent, claim)

        return response(await answer_once(call, _read, act, partial(_created, call)))

    @get("/{user_id:str}", summary="Get your profile")
    async def get_one(
        self, request: Request[Any, Any, Any], user_id: FromPath[str]
    ) -> Response[UserItem]:
        """The caller's own profile; `me` stands for the caller."""
        call = call_in(request)
        user = await call.context.resources.users.get_user(_own(call, user_id))
        return response(_shown(call, user))

    @patch("/{user_id:str}", summary="Change your profile")
    async def change(
        self, request: Request[Any, Any, Any], user_id: FromPath[str]
    ) -> Response[UserItem]:
        """Applies a JSON merge patch (RFC 7396): null removes, preferences are merged."""
        call = call_in(request)

        async def act(claim: Claim | None, sent: Sent) -> User:
            service = call.context.resources.user_service
            service.validate_patch(*sent)  # 422 comes before 404
            return await service.change(_own(call, user_id), *sent, claim)

        return response(await answer_once(call, _read, act, partial(_shown, call)))

    @delete("/{user_id:str}", status_code=202, summary="Delete your profile and reports")
    async def delete(
        self, request: Request[Any, Any, Any], user_id: FromPath[str]
    ) -> Response[UserItem]:
        """Marks the profile; a worker removes it and its reports. Until then writes are 409."""
        call = call_in(request)

        async def act(claim: Claim | None, _sent: None) -> User:
            return await call.context.resources.user_service.request_deletion(
                _own(call, user_id), claim
            )

        reply = await answer_once(call, nothing, act, partial(_shown, call, status=202))
        await call.context.resources.queue.enqueue_deletion(call.caller.user_id)
        return response(reply)


def _own(call: Call, user_id: str) -> str:
    """The caller's id, if that is who was named.

    Raises:
        NotFound: it is someone else, or nobody.
    """
    if unescape(user_id) not in {ME, call.caller.user_id}:
        raise unknown_user()
    return call.caller.user_id


async def _read(call: Call) -> Sent:
    body = _body.decode(call.data, msgpack=False)
    sent = {name: getattr(body, name) for name in _FIELDS}
    fields = {name: value for name, value in sent.items() if value is not UNSET}
    preferences = bytes(body.preferences) if isinstance(body.preferences, Raw) else None
    if preferences is not None:
        check_text(preferences)
    return fields, preferences


def _created(call: Call, user: User) -> Reply:
    location = f"/users/{quote(user.user_id, safe='')}".encode()
    return call.reply_json(_item(user), 201, ((b"location", location),))


def _shown(call: Call, user: User, status: int = 200) -> Reply:
    return call.reply_json(_item(user), status)


def _item(user: User) -> UserItem:
    return UserItem(
        user_id=user.user_id,
        name=user.name,
        email=user.email,
        avatar_url=user.avatar_url,
        preferences=Raw(user.preferences.encode()),
        created_at=user.created_at,
        updated_at=user.updated_at,
        deleting_at=user.deleting_at,
    )
