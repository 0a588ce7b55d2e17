"""Users: each caller's own profile."""

from functools import partial
from typing import Final
from urllib.parse import quote

import msgspec
from litestar import Controller, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from msgspec import UNSET, Raw

from api.http.idempotency import once
from api.http.parameters import LOCATION, UserIdPath
from api.http.request import JSON_ONLY, ApiRequest, ApiResponse
from api.wire.records import NewUser, UserBody, UserItem
from core.models import User
from core.repositories.users import UserRepository, unknown_user
from core.usecases.documents import check_text
from core.usecases.users import UserService

ME: Final = "me"


class UserController(Controller):
    """Profiles."""

    path = "/users"
    tags = ("users",)
    opt = {JSON_ONLY: True}  # noqa: RUF012 - Litestar has no other place for it

    @post("", status_code=201, summary="Create your profile", response_headers=[LOCATION])
    async def create(
        self,
        request: ApiRequest,
        data: JSONBody[NewUser],
        user_service: NamedDependency[UserService],
    ) -> ApiResponse[UserItem]:
        """Creates the caller's own profile; `user_id` is the token's `sub`."""
        sent = _sent(data)
        caller = request.caller.user_id
        user = await once(request, partial(user_service.create, caller, *sent))
        location = f"/users/{quote(user.user_id, safe='')}"
        return ApiResponse(_item(user), status_code=201, headers={"location": location})

    @get("/{user_id:str}", summary="Get your profile")
    async def get_one(
        self, request: ApiRequest, user_id: UserIdPath, users: NamedDependency[UserRepository]
    ) -> UserItem:
        """The caller's own profile; `me` stands for the caller."""
        return _item(await users.get_user(_own(request, user_id)))

    @patch("/{user_id:str}", summary="Change your profile")
    async def change(
        self,
        request: ApiRequest,
        user_id: UserIdPath,
        data: JSONBody[UserBody],
        user_service: NamedDependency[UserService],
    ) -> UserItem:
        """Applies a JSON merge patch (RFC 7396): null removes, preferences are merged."""
        sent = _sent(data)
        user_service.validate_patch(*sent)  # 422 comes before 404
        own = _own(request, user_id)
        return _item(await once(request, partial(user_service.change, own, *sent)))

    @delete("/{user_id:str}", status_code=202, summary="Delete your profile and reports")
    async def delete(
        self, request: ApiRequest, user_id: UserIdPath, user_service: NamedDependency[UserService]
    ) -> UserItem:
        """Marks the profile; a worker removes it and its reports. Until then writes are 409."""
        own = _own(request, user_id)
        user = await once(request, partial(user_service.request_deletion, own))
        await request.context.app.resources.queue.enqueue_deletion(own)
        return _item(user)


def _own(request: ApiRequest, user_id: str) -> str:
    """The caller's id, if that is who was named; else raises `NotFound`."""
    own = request.caller.user_id
    if user_id not in {ME, own}:
        raise unknown_user()
    return own


def _sent(body: UserBody) -> tuple[dict[str, str | None], bytes | None]:
    """The fields that were sent, and the preferences, which must be UTF-8, if they were too."""
    sent = msgspec.structs.asdict(body)
    fields = {name: value for name, value in sent.items() if value is not UNSET}
    if "preferences" not in fields:
        return fields, None
    preferences = bytes(fields.pop("preferences"))
    check_text(preferences)
    return fields, preferences


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
