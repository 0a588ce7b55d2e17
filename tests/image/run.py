"""`make image-test`: builds the image, runs compose.yaml with it, and does to it what happens.

It needs a Docker engine, of DOCKER_HOST or one that it starts itself, and ends all that it started.
Prints what each step found and how long it took; ends with 1 at the first that failed.
"""

import asyncio
import io
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any, Final

import httpx
import numpy as np

from deploy.local.sample import MODEL, PRODUCT
from tests.emulators import free_port
from tests.image.engine import Unusable, engine
from tests.image.images import TARGETS, base_image, build_images, check_image, size_mb
from tests.image.stack import Stack, stack, wait_for
from tests.image.traffic import traffic

_LARGE: Final = "large"
"""A model version whose build lasts long enough to be interrupted."""
_ROWS: Final = 10_000
_DIMENSION: Final = 384


@contextmanager
def _step(name: str) -> Iterator[Callable[[str], None]]:
    """Prints a step with its seconds, and with what it found."""
    began = monotonic()
    found: list[str] = []
    print(f"{name} …", flush=True)
    yield found.append
    print(f"    {monotonic() - began:6.1f} s  {'; '.join(found)}", flush=True)


def _ask(url: str, token: str, path: str) -> Any:
    """An answer of the API. A 503 is asked again: the emulator, busy with a build, keeps others."""
    headers = {"Authorization": f"Bearer {token}"}
    deadline = monotonic() + 120
    while True:
        reply = httpx.get(f"{url}{path}", headers=headers, timeout=30)
        if reply.status_code != httpx.codes.SERVICE_UNAVAILABLE or monotonic() > deadline:
            reply.raise_for_status()
            return reply.json()
        sleep(int(reply.headers.get("retry-after", "1")))


def _neighbors(url: str, token: str) -> list[str]:
    path = f"/models/{MODEL}/products/{PRODUCT}/neighbors?k=5"
    return [found["product_id"] for found in _ask(url, token, path)["neighbors"]]


def _start(project: Stack, url: str) -> list[str]:
    """Starts everything, waits for the sample, and asks from outside; the neighbours."""
    project.compose("up", "--detach", "--no-build")
    (sample,) = project.containers("sample")
    wait_for(lambda: project.state(sample)["Status"] == "exited", "the sample", 300)
    shown = project.compose("logs", "--no-log-prefix", "sample")
    assert project.state(sample)["ExitCode"] == 0, shown
    assert "docker compose exec" in shown
    found = _neighbors(url, project.k9("token").strip())
    assert len(found) == 5
    assert all(product in shown for product in found), (found, shown)
    return found


def _kill_each(project: Stack, url: str) -> None:
    for service in ("api", "worker", "valkey", "aws"):
        with _step(f"{service}: killed") as say:
            (container,) = project.containers(service)
            took = project.kill(container)
            # A token of the pool that was there before, and what the tables had.
            token = project.k9("token", "--operator").strip()
            assert len(_neighbors(url, token)) == 5
            assert _ask(url, token, "/models")["items"]
            say(f"healthy again after {took:.1f} s, with its data")


def _stop_api(project: Stack) -> None:
    token = project.k9("token", "--operator").strip()
    containers = project.containers("api")
    urls = [project.url_of(container) for container in containers]

    async def stopped() -> tuple[float, dict[str, int], int]:
        async with traffic(urls, token) as running:
            await asyncio.sleep(3)  # of requests to both
            before = running.by_target[urls[1]]
            took = await asyncio.to_thread(project.stop, containers[0])
            assert running.by_target[urls[1]] > before
        return took, dict(running.answers), running.by_target[urls[0]]

    with _step("one of two APIs: docker stop under load") as say:
        took, answers, there = asyncio.run(stopped())
        assert there
        say(f"ended after {took:.1f} s; {sum(answers.values())} requests, none failed: {answers}")
    project.engine.run("start", containers[0])


def _stop_worker(project: Stack) -> None:
    with _step(f"{_ROWS:,} rows of {_LARGE} imported") as say:
        random = np.random.default_rng(7)
        centres = random.normal(size=(300, _DIMENSION))
        vectors = centres[random.integers(300, size=_ROWS)]
        vectors = (vectors + 0.4 * random.normal(size=vectors.shape)).astype(np.float32)
        buffer = io.BytesIO()
        np.savez(buffer, product_ids=[f"p{row}" for row in range(_ROWS)], vectors=vectors)
        say(project.k9("import", "-", "--model", _LARGE, data=buffer.getvalue()).strip())
    with _step("one of two workers: docker stop in the middle of a build") as say:
        workers = project.containers("worker")
        token = project.k9("token", "--operator").strip()
        url = project.url_of(project.containers("api")[0])
        build_id = project.k9("build", _LARGE, "--no-wait").strip()

        def ended() -> bool:
            return _ask(url, token, f"/builds/{build_id}")["status"] not in {"queued", "running"}

        wait_for(lambda: any(_said(project, worker, build_id) for worker in workers), "a claim", 60)
        (first,) = (worker for worker in workers if _said(project, worker, build_id))
        (other,) = set(workers) - {first}
        progress = _ask(url, token, f"/builds/{build_id}")["progress"]
        took = project.stop(first)
        assert "build released" in _said(project, first, build_id)
        wait_for(ended, "the build to end", 600)
        build = _ask(url, token, f"/builds/{build_id}")
        assert build["status"] == "published", build
        assert "build published" in _said(project, other, build_id)
        say(f"stopped in {progress}, ended after {took:.1f} s; the other one published the build")
    project.engine.run("start", first)


def _said(project: Stack, worker: str, build_id: str) -> list[str]:
    """What a worker logged of a build."""
    return [line["event"] for line in project.logs(worker) if line.get("build_id") == build_id]


def _test() -> None:
    with engine() as docker:
        version = docker.run("version", "--format", "{{.Server.Version}}").strip()
        where = "started for this test" if docker.own else f"at {docker.host}"
        print(f"Docker engine {version}, {where}")
        with _step("base image") as say:
            base, what = base_image(docker)
            say(what)
        with _step("images built") as say:
            took = build_images(docker)
            say(", ".join(f"{target} {seconds:.0f} s" for target, seconds in took.items()))
        with _step("image checked") as say:
            check_image(docker)
            sizes = {"base": base, **TARGETS}
            shown = [f"{name} {size_mb(docker, tag):.0f} MB" for name, tag in sizes.items()]
            say(", ".join(shown))
        port = free_port()
        with stack(docker, port) as project:
            _run(project, f"http://127.0.0.1:{port}")


def _run(project: Stack, url: str) -> None:
    with _step("compose up, with an empty disk") as say:
        found = _start(project, url)
        (api,), (worker,) = project.containers("api"), project.containers("worker")
        say(f"the API listens {project.start_seconds(api, 'listening'):.1f} s after its start")
        say(f"the worker works after {project.start_seconds(worker, 'worker started'):.1f} s")
        say(f"neighbours of {PRODUCT}: {', '.join(found)}")
    with _step("a build") as say:
        said = project.k9("build", MODEL, "--force")
        assert "published" in said, said
        say(said.splitlines()[-1])
    _kill_each(project, url)
    with _step("compose down, and up again") as say:
        project.compose("down")
        assert _start(project, url) == found
        say("the same neighbours, from the data that was there")
    with _step("load for 10 s") as say:
        command = ["python", "-m", "tests.load.run", "--users", "4", "--duration", "10"]
        said = project.compose("--profile", "load", "run", "--rm", "-T", "load", *command)
        say(" ".join(next(line for line in said.splitlines() if line.startswith("all ")).split()))
    with _step("two APIs and two workers"):
        services = ["--scale", "api=2", "--scale", "worker=2", "api", "worker"]
        any_port = {"K9_PORT": "0"}
        project.compose("up", "--detach", "--no-build", "--wait", *services, environ=any_port)
    _stop_api(project)
    _stop_worker(project)


def main() -> int:
    """Runs the test; 0 if all of it held, 2 if it cannot run here."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = monotonic()
    try:
        _test()
    except Unusable as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except (AssertionError, RuntimeError, TimeoutError, httpx.HTTPError) as error:
        sys.stderr.write(f"failed: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what was started has been ended\n")
        return 130
    print(f"all of it held, in {monotonic() - began:.0f} s, and nothing is left running")
    return 0


if __name__ == "__main__":
    sys.exit(main())
