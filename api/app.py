"""The application: routes, hooks, lifespan, and the entrypoint before them. No I/O at import."""

from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final, cast

from litestar import Controller, Litestar
from litestar.types import BeforeRequestHookHandler, Message, Scope

from api import metrics
from api.admission.executor import FairExecutor, lower_priority
from api.admission.quotas import Admission, BodyLimits
from api.auth.keys import KeyStore, jwks_url, open_keys
from api.auth.tokens import Authenticator, check_settings
from api.context import AppContext
from api.dependencies import dependencies
from api.entrypoint import Entrypoint
from api.events import Events
from api.health import Health
from api.http.hooks import answer_error, authenticate, prepare, settle
from api.http.request import ApiRequest, ApiResponse
from api.openapi.routes import reference_controller
from api.routes import builds, imports
from api.routes.builds import BuildController
from api.routes.embeddings import EmbeddingController
from api.routes.health import HealthController
from api.routes.imports import ImportController
from api.routes.misses import MissController
from api.routes.models import ModelController
from api.routes.reports import ReportController
from api.routes.search import SearchController
from api.routes.users import UserController
from api.serving.background import running
from api.serving.probes import Probes
from api.serving.registry import IndexRegistry
from api.serving.updater import IndexUpdater
from core.dynamo.cursors import Cursors
from core.metrics_log import logged_metrics
from core.queue import redis_settings
from core.rates import open_rates
from core.resources import Resources, open_resources
from core.settings import Settings
from core.stalls import watched_loop
from core.vectors.families import set_threads

CONTROLLERS: Final[Sequence[type[Controller]]] = (
    SearchController,
    MissController,
    EmbeddingController,
    BuildController,
    ImportController,
    ModelController,
    UserController,
    ReportController,
    HealthController,
)


def create_app(
    settings: Settings,
    resources: Resources | None = None,
    *,
    keys: KeyStore | None = None,
    use_fast_path: bool = True,
    started: Callable[[], None] = lambda: None,
) -> Entrypoint:
    """The application.

    Args:
        settings: Every limit and address.
        resources: Opened by someone else, who closes them; None: opened and closed here.
        keys: The token keys, likewise.
        use_fast_path: Whether searches skip the router; false only to test that both answer alike.
        started: Called when all is open, before the first request.

    Raises:
        SettingsError: naming a setting with which no request could be answered.
    """
    check_settings(settings)
    jwks_url(settings)
    Cursors(settings.cursor_keys, settings.cursor_ttl_s)
    redis_settings(settings)

    @asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncIterator[None]:
        try:
            async with _open_context(settings, resources, keys, app.health) as context:
                app.context = context
                started()
                await app.health.until_loaded(app.loading_s)
                yield
        except BaseException as error:
            app.failure = error
            raise

    litestar = Litestar(
        route_handlers=[*CONTROLLERS, reference_controller(CONTROLLERS, settings)],
        lifespan=[lifespan],
        dependencies=dependencies(),
        request_class=ApiRequest,
        response_class=ApiResponse,
        guards=[authenticate],
        before_request=cast("BeforeRequestHookHandler", prepare),
        before_send=[_say_allowed],
        after_exception=[settle],
        exception_handlers={Exception: answer_error},
        openapi_config=None,
        logging_config=None,
        debug=False,
        request_max_body_size=None,
    )
    app = Entrypoint(litestar, settings, use_fast_path=use_fast_path)
    return app


@asynccontextmanager
async def _open_context(
    settings: Settings, given: Resources | None, keys: KeyStore | None, health: Health
) -> AsyncIterator[AppContext]:
    async with AsyncExitStack() as stack:
        stack.enter_context(watched_loop(settings.loop_probe_s, settings.loop_stall_s))
        resources = (
            await stack.enter_async_context(open_resources(settings)) if given is None else given
        )
        if keys is None:
            keys = await stack.enter_async_context(open_keys(settings, health))
        admission = Admission(settings)
        rates = await stack.enter_async_context(open_rates(settings))
        set_threads(1)  # a search takes one thread, and another search takes the next
        serving = settings.serving
        searching = _turns("large searches", serving.search_threads, serving.search_queue_s, stack)
        decoding = _turns("bodies", 1, settings.http.body_timeout_s, stack)
        registry = IndexRegistry(resources)
        stack.push_async_callback(registry.aclose)
        updater = IndexUpdater(resources, registry, health)
        probes = Probes(resources, registry, health, updater.records)
        await stack.enter_async_context(
            running(
                updater.run,
                registry.listen,
                probes.ask_dependencies,
                probes.replace_foreign_versions,
            )
        )
        _show(health, admission)
        await stack.enter_async_context(logged_metrics(settings.metrics_log_s, metrics.logged))
        follow = partial(
            Events, http=settings.http, stopping=lambda: health.draining, quota=admission.streams
        )
        yield AppContext(
            settings=settings,
            resources=resources,
            authenticator=Authenticator(settings, keys),
            registry=registry,
            health=health,
            admission=admission,
            rates=rates,
            build_events=follow("build", partial(builds.state, resources.builds)),
            import_events=follow("import", partial(imports.state, resources.imports)),
            body_limits=BodyLimits(settings),
            searching=searching,
            decoding=decoding,
        )


def _show(health: Health, admission: Admission) -> None:
    """Shows in the metrics whether this process is ready, and what its requests hold."""
    metrics.READY.set_function(lambda: float(health.ready))
    for name in health.dependencies:
        failing = metrics.DEPENDENCY_FAILING.labels(name)
        failing.set_function(partial(health.is_failing, name))
    metrics.IN_FLIGHT.set_function(lambda: admission.requests)
    for name, quota in admission.named().items():
        metrics.ADMISSION_LIMIT.labels(name).set(quota.total)
        metrics.ADMISSION_IN_USE.labels(name).set_function(partial(getattr, quota, "in_use"))


def _turns(name: str, width: int, wait_s: float, stack: AsyncExitStack) -> FairExecutor:
    """Threads for long work, until the stack is closed."""
    threads = ThreadPoolExecutor(width, name, initializer=_begin_thread)
    stack.callback(threads.shutdown, wait=False, cancel_futures=True)
    return FairExecutor(name, threads, width, wait_s)


def _begin_thread() -> None:
    set_threads(1)
    lower_priority()


async def _say_allowed(message: Message, scope: Scope) -> None:
    """Litestar's `Allow` names the methods that a path had when its first handler came."""
    if message["type"] != "http.response.start" or not any(
        name == b"allow" for name, _ in message["headers"]
    ):
        return
    methods = {
        method
        for route in scope["litestar_app"].routes
        if route.path_format == scope.get("path_template")
        for method in getattr(route, "methods", ())
    }
    if not methods:
        return  # a method that no route has: the router did not look which path it was
    allow = (b"allow", ", ".join(sorted(methods)).encode())
    message["headers"] = [*(pair for pair in message["headers"] if pair[0] != b"allow"), allow]
