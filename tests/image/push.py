"""`make deploy-test`: deploy.sh builds the image and pushes it, to a registry in place of ECR.

The registry is Debian's `docker-registry`, the account the embedded AWS, the engine as in
`make image-test`. Shown: an environment of that image; a second run that pushes and changes
nothing; the image as it comes back from the registry.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Final

import httpx

from core.settings import Settings
from deploy.aws.clients import open_client
from tests.e2e.test_deploy import create_pool
from tests.emulators import CREDENTIALS, free_port, running, settings_for
from tests.image.engine import Engine, Unusable, engine
from tests.image.images import ROOT, base_image, pip_secrets

_LEFT_OUT: Final = ("NatGateways=0", "RequestsPerMinute=0", "Scaling=off")
_START_S: Final = 30.0


@contextmanager
def _registry() -> Iterator[str]:
    """A registry with nothing in it; its address without a scheme."""
    program = shutil.which("docker-registry")
    if program is None:
        raise Unusable("docker-registry is not installed: apt-get install docker-registry")
    address = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory(prefix="k9-registry-") as name:
        config = Path(name, "config.yml")
        config.write_text(
            "version: 0.1\n"
            f"storage: {{filesystem: {{rootdirectory: {name}/data}}}}\n"
            f"http: {{addr: {address}}}\n"
        )
        with Path(name, "log").open("wb") as log:
            process = subprocess.Popen([program, "serve", str(config)], stdout=log, stderr=log)
        try:
            deadline = monotonic() + _START_S
            while True:
                try:
                    httpx.get(f"http://{address}/v2/").raise_for_status()
                    break
                except httpx.HTTPError:
                    if process.poll() is not None or monotonic() > deadline:
                        raise
                    sleep(0.1)
            yield address
        finally:
            process.terminate()
            process.wait(10)


def _deploy(
    settings: Settings, docker: Engine, pool_id: str, repository: str, secrets: list[str]
) -> str:
    """What deploy.sh says on standard error."""
    parameters = [word for each in _LEFT_OUT for word in ("--parameter", each)]
    secrets = [word.replace("--secret", "--build-secret") for word in secrets]
    done = subprocess.run(
        [
            *(str(ROOT / "deploy" / "deploy.sh"), "--environment", "dev", "--no-alarms"),
            *("--user-pool-id", pool_id, "--client-range", "10.0.0.0/8", "--no-smoke-test"),
            *("--repository", repository, *parameters, *secrets),
        ],
        env={
            **docker.environ,
            **CREDENTIALS,
            "AWS_ENDPOINT_URL": str(settings.aws.endpoint_url),
            "AWS_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "PATH": f"{Path(docker.program).parent}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return done.stderr


async def _deployed_image(settings: Settings) -> str:
    async with open_client("ecs", settings) as client:
        services = await client.describe_services(cluster="k9-dev", services=["api"])
        definition = services["services"][0]["taskDefinition"]
        task = await client.describe_task_definition(taskDefinition=definition)
    return str(task["taskDefinition"]["containerDefinitions"][0]["image"])


def run() -> None:
    """Deploys twice, and prints what was found."""
    os.environ.update(CREDENTIALS)
    with (
        engine() as docker,
        running("ministack") as url,
        _registry() as registry,
        tempfile.TemporaryDirectory() as directory,
    ):
        _, what = base_image(docker)
        print(f"base image: {what}", flush=True)
        settings = settings_for(url)
        pool_id = asyncio.run(create_pool(settings))
        repository = f"{registry}/k9"
        secrets = pip_secrets(Path(directory))
        began = monotonic()
        said = _deploy(settings, docker, pool_id, repository, secrets)
        assert f"pushing {repository}:" in said, said
        image = asyncio.run(_deployed_image(settings))
        tags = httpx.get(f"http://{registry}/v2/k9/tags/list").json()["tags"]
        assert image == f"{repository}:{tags[0]}", (image, tags)
        print(f"built, pushed and deployed {image} in {monotonic() - began:.0f} s", flush=True)
        began = monotonic()
        said = _deploy(settings, docker, pool_id, repository, secrets)
        for name in ("base", "data", "service"):
            assert f"k9-{name}-dev: no change" in said, said
        assert httpx.get(f"http://{registry}/v2/k9/tags/list").json()["tags"] == tags
        print(f"again: no change, in {monotonic() - began:.0f} s", flush=True)
        docker.run("rmi", "--force", image)
        assert docker.run("run", "--rm", "--read-only", image, "k9", "--version").startswith("k9 ")
        print("the image of the registry runs", flush=True)


def main() -> int:
    """The exit status: 1 for a failure, 2 where the test cannot run here."""
    try:
        run()
    except Unusable as error:
        print(f"cannot run here: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
