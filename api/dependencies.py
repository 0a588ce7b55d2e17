"""What handlers may take as dependencies: every service by its name, or the whole process's.

A handler that needs several services takes `app`: Litestar provides several dependencies in a task
group, which costs a request 0.2 ms.
"""

from collections.abc import Callable
from dataclasses import fields
from operator import attrgetter
from typing import Any

from litestar.di import Provide

from api.context import AppContext
from api.http.paging import provide_page
from api.http.request import ApiRequest
from core.resources import Resources


def _provide(path: str) -> Callable[[ApiRequest], Any]:
    get = attrgetter(path)

    def provide(request: ApiRequest) -> Any:
        return get(request.context)

    return provide


def dependencies() -> dict[str, Provide]:
    """Name → provider, for all handlers."""
    providers: dict[str, Callable[..., Any]] = {
        **{each.name: _provide(f"app.{each.name}") for each in fields(AppContext)},
        **{each.name: _provide(f"app.resources.{each.name}") for each in fields(Resources)},
        "app": _provide("app"),
        "page": provide_page,
    }
    return {name: Provide(provider, sync_to_thread=False) for name, provider in providers.items()}
