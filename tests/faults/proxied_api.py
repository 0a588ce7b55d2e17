"""An API with a proxy before each of its dependencies: to have them gone, hung and back."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import msgspec

from api.app import create_app
from core.resources import Resources, open_resources
from core.settings import Auth, Http, Serving, Settings
from tests.api.pool import CLIENT_ID, Pool, running_pool
from tests.api.serving import build_here, client_of, eventually, path_of, started, vector
from tests.faults.proxy import Faults, Proxy, proxied

MODEL = "m-faults"
ROWS = 40
PARTS = ("dynamodb", "s3", "redis", "cognito")
GONE = Faults(refuse=True)
HUNG = Faults(hang_rate=1.0)


class ProxiedApi:
    """Settings through proxies, the straight way for the test itself, and the proxies by part."""

    def __init__(
        self, settings: Settings, straight: Resources, pool: Pool, proxies: dict[str, Proxy]
    ) -> None:
        self.settings = settings
        self.straight = straight
        self.pool = pool
        self.proxies = proxies

    def set(self, faults: Faults, *parts: str) -> None:
        """Changes what happens to these parts; cuts what is open to them first."""
        for part in parts:
            self.proxies[part].set(GONE)
            self.proxies[part].set(faults)

    @asynccontextmanager
    async def api(self) -> AsyncIterator[httpx.AsyncClient]:
        """A process of the API on these settings, and an operator's client of it."""
        app = create_app(self.settings)
        async with started(app), client_of(app, self.pool.token("operators")) as client:
            yield client


def _through(url: str, proxy: Proxy) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"127.0.0.1:{proxy.port}").geturl()


@asynccontextmanager
async def open_proxied_api(stack_settings: Settings, directory: Path) -> AsyncIterator[ProxiedApi]:
    """A published index, and every dependency behind a proxy that passes all through."""
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(running_pool())
        aws = stack_settings.aws.endpoint_url or ""
        addresses = {
            "dynamodb": aws,
            "s3": aws,
            "redis": stack_settings.redis_url,
            "cognito": pool.url,
        }
        proxies = {
            part: await stack.enter_async_context(
                proxied(urlsplit(url).port or 0, dynamodb=part == "dynamodb")
            )
            for part, url in addresses.items()
        }
        straight = msgspec.structs.replace(
            stack_settings,
            building=msgspec.structs.replace(stack_settings.building, work_dir=directory / "work"),
            serving=Serving(cache_dir=directory / "cache", refresh_s=0.2),
            http=Http(metrics_port=0),
            auth=Auth(
                auth_issuer=pool.issuer,
                auth_jwks_url=_through(pool.url, proxies["cognito"]),
                auth_client_ids=(CLIENT_ID,),
            ),
        )
        defaults = Settings().aws
        settings = msgspec.structs.replace(
            straight,
            redis_url=_through(addresses["redis"], proxies["redis"]),
            aws=msgspec.structs.replace(
                straight.aws,
                endpoint_url_dynamodb=_through(aws, proxies["dynamodb"]),
                endpoint_url_s3=_through(aws, proxies["s3"]),
                read_timeout_s=defaults.read_timeout_s,
                deadline_s=defaults.deadline_s,
                object_deadline_s=10.0,
            ),
        )
        resources = await stack.enter_async_context(open_resources(straight))
        site = ProxiedApi(settings, resources, pool, proxies)
        async with site.api() as client:
            entries = [{"product_id": f"p{n}", "vector": vector(n).tolist()} for n in range(ROWS)]
            batch = path_of(MODEL, "embeddings:batch")
            stored = await client.post(batch, json={"embeddings": entries})
            assert stored.status_code == 200, stored.text
            asked = await client.post(path_of(MODEL, "builds"), json={})
            await build_here(resources, asked.json()["build_id"])
            await eventually(client, MODEL)
        yield site
