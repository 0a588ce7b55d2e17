"""Cancelling, promoting and watching builds over HTTP."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from api.app import create_app
from api.entrypoint import Entrypoint
from core.errors import Corrupt, Unavailable
from core.models import Build, Progress
from core.names import versions_prefix
from core.settings import Http
from tests.api.conftest import MODEL, Service
from tests.api.serving import assert_problem, build_here, client_of, path_of, started, vector


async def opened(service: Service, model: str) -> str:
    """The id of an open build of a model version of this test's own."""
    client = service.client
    entries = [{"product_id": f"p{n}", "vector": vector(n).tolist()} for n in range(6)]
    await client.post(f"/models/{model}/embeddings:batch", json={"embeddings": entries})
    build_id: str = (await client.post(path_of(model, "builds"), json={})).json()["build_id"]
    return build_id


class Stream:
    """One request for events, as a server drives the application."""

    def __init__(self, app: Entrypoint, row_id: str, token: str, kind: str = "builds") -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._left = asyncio.Event()
        self.reading = asyncio.Event()
        """While it is not set, the client takes nothing."""
        self.reading.set()
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        scope: Any = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": f"/{kind}/{row_id}/events",
            "raw_path": f"/{kind}/{row_id}/events".encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"authorization", b"Bearer " + token.encode()), (b"last-event-id", b"7")],
            "client": None,
            "server": None,
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> Any:
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await self.reading.wait()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {n.decode(): v.decode() for n, v in message["headers"]}
        else:
            await self._chunks.put(message["body"])
            if not message.get("more_body", False):
                await self._chunks.put(None)

    def leave(self) -> None:
        """The client closes its connection."""
        self._left.set()

    async def chunk(self) -> bytes | None:
        """What comes next; None at the end."""
        async with asyncio.timeout(10):
            return await self._chunks.get()

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The builds that come, until the end."""
        while (chunk := await self.chunk()) is not None:
            if chunk.startswith(b"event: build\ndata: "):
                assert chunk.endswith(b"\n\n")
                yield json.loads(chunk.removeprefix(b"event: build\ndata: "))

    async def event(self) -> dict[str, Any]:
        """The next build that comes."""
        async for build in self.events():
            return build
        raise AssertionError("the stream ended")


@asynccontextmanager
async def quick(service: Service, **limits: Any) -> AsyncIterator[Entrypoint]:
    """A second process, in a hurry, on the same tables."""
    http = Http(metrics_port=0, event_poll_s=0.05, event_keepalive_s=0.1)
    http = msgspec.structs.replace(http, **limits)
    app = create_app(msgspec.structs.replace(service.settings, http=http), service.resources)
    async with started(app):
        yield app


async def test_a_cancelled_build_answers_and_stays_cancelled(service: Service) -> None:
    """202 with the build, the same again under its key, and 409 once it has ended."""
    client = service.client
    build_id = await opened(service, "m-cancel")
    key = {"idempotency-key": "cancel-1"}
    first = await client.delete(f"/builds/{build_id}", headers=key)
    assert first.status_code == 202, first.text
    body = first.json()
    assert (body["status"], body["attempt"], body["error"]) == ("cancelled", 0, None)
    assert (await client.get(f"/builds/{build_id}")).json() == body
    again = await client.delete(f"/builds/{build_id}", headers=key)
    assert (again.status_code, again.json()) == (202, body)
    assert_problem(await client.delete(f"/builds/{build_id}"), 409, "build-ended")
    assert_problem(await client.delete("/builds/unknown"), 404, "not-found")
    assert (await client.get("/models/m-cancel")).json()["open_build_id"] is None
    async with client_of(service.app, service.pool.token("readers")) as reader:
        assert_problem(await reader.delete(f"/builds/{build_id}"), 403)
        assert_problem(
            await reader.post(path_of(MODEL, "promote"), json={"build_id": build_id}), 403
        )


async def test_an_earlier_build_is_promoted_and_pinned(service: Service) -> None:
    """200 with the model version; 404 and 409 for what cannot be; a build unpins."""
    client, model = service.client, "m-promote"
    ids = []
    for _ in range(2):
        ids.append(await opened(service, model))
        await build_here(service.resources, ids[-1])
    promote = path_of(model, "promote")
    reply = await client.post(
        promote, json={"build_id": ids[0]}, headers={"idempotency-key": "promote-1"}
    )
    assert reply.status_code == 200, reply.text
    assert (reply.json()["pinned"], reply.json()["current_build"]["build_id"]) == (True, ids[0])
    shown = (await client.get(f"/models/{model}")).json()
    assert (shown["pinned"], shown["current_build"]["build_id"]) == (True, ids[0])
    assert_problem(await client.post(promote, json={"build_id": "unknown"}), 404)
    other = await opened(service, "m-promote-other")
    assert_problem(await client.post(promote, json={"build_id": other}), 404)
    waiting = await opened(service, model)
    assert_problem(await client.post(promote, json={"build_id": waiting}), 409, "not-promotable")
    prefix = versions_prefix(service.settings.environment, model) + ids[1]
    lost = await service.resources.objects.list_keys(prefix)
    await service.resources.objects.delete(lost)
    assert_problem(await client.post(promote, json={"build_id": ids[1]}), 409, "not-promotable")
    assert_problem(await client.post(promote, json={"build": 1}), 422)
    assert_problem(await client.post(promote, content=b"{"), 400)
    await build_here(service.resources, waiting)
    shown = (await client.get(f"/models/{model}")).json()
    assert (shown["pinned"], shown["current_build"]["build_id"]) == (False, waiting)
    again = await client.post(
        promote, json={"build_id": ids[0]}, headers={"idempotency-key": "promote-1"}
    )
    assert again.json() == reply.json()
    assert (await client.get(f"/models/{model}")).json()["pinned"] is False


async def test_events_tell_each_change_and_end_with_the_build(service: Service) -> None:
    """Any process tells the present state, what changes, keeps the stream open, and ends it."""
    build_id = await opened(service, "m-events")
    builds = service.resources.builds
    async with quick(service) as app:
        token = service.pool.token("readers")
        streams = [Stream(app, build_id, token) for _ in range(2)]
        for stream in streams:
            assert (await stream.event())["status"] == "queued"
        assert (streams[0].status, streams[0].headers["content-type"]) == (200, "text/event-stream")
        assert streams[0].headers["x-accel-buffering"] == "no"  # no proxy gathers them
        assert app.context is not None
        assert app.context.admission.requests == 0
        while await streams[0].chunk() != b": the build goes on\n\n":
            pass
        claimed = await builds.claim(build_id, 0)
        assert (await streams[1].event())["status"] == "running"
        await builds.beat(claimed, Progress("index", 3, 9))
        async for build in streams[1].events():
            if build["progress"] == {"stage": "index", "done": 3, "total": 9}:
                break
        await builds.cancel(build_id)
        for stream in streams:
            assert [build async for build in stream.events()][-1]["status"] == "cancelled"
            await stream.task
        late = Stream(app, build_id, token)
        assert [build["status"] async for build in late.events()] == ["cancelled"]
        await late.task
        assert app.context.admission.streams.in_use == 0
        assert not app.context.build_events._watched  # noqa: SLF001


async def test_a_stream_ends_with_its_token_and_with_its_client(service: Service) -> None:
    """Neither an old token nor a client that left keeps one open."""
    build_id = await opened(service, "m-events-end")
    async with quick(service) as app:
        assert app.context is not None
        open_streams = app.context.admission.streams
        short = service.pool.token("readers", exp=int(time.time()) - 2)  # with 5 s of leeway
        stream = Stream(app, build_id, short)
        assert [build["status"] async for build in stream.events()] == ["queued"]
        await stream.task
        leaving = Stream(app, build_id, service.pool.token("readers"))
        await leaving.event()
        assert open_streams.in_use == 1
        leaving.leave()
        async with asyncio.timeout(20):
            await leaving.task
        assert open_streams.in_use == 0


async def test_streams_are_bounded_and_end_with_the_process(service: Service) -> None:
    """One more than may be open is 503; unknown builds are 404; a process that stops ends them."""
    build_id = await opened(service, "m-events-many")
    async with quick(service, event_streams_max=2) as app:
        token = service.pool.token("readers")
        others = [service.pool.token("readers", sub=f"listener-{n}") for n in range(2)]
        streams = [Stream(app, build_id, other) for other in others]
        for stream in streams:
            await stream.event()
        async with client_of(app, token) as client:
            reply = await client.get(f"/builds/{build_id}/events")
            assert_problem(reply, 503, "overloaded")
            assert reply.headers["retry-after"]
            streams[0].leave()
            await streams[0].task
            assert_problem(await client.get("/builds/unknown/events"), 404)
            assert (await client.head(f"/builds/{build_id}/events")).status_code == 200
        async with client_of(app, service.pool.token()) as caller:
            assert_problem(await caller.get(f"/builds/{build_id}/events"), 403)
        app.drain()
        with contextlib.suppress(StopAsyncIteration):
            assert [build async for build in streams[1].events()] == []
        await streams[1].task


async def test_the_oldest_stream_of_a_caller_gives_way(service: Service) -> None:
    """It ends cleanly, in the middle of a write too; another caller always finds room."""
    build_id = await opened(service, "m-events-share")
    async with quick(service, event_streams_max=4) as app:
        token = service.pool.token("readers")
        first, stuck = Stream(app, build_id, token), Stream(app, build_id, token)
        assert app.context is not None
        open_streams = app.context.admission.streams
        for stream in (first, stuck):
            await stream.event()
        stuck.reading.clear()  # what it is sent next, it does not take
        third = Stream(app, build_id, token)
        await third.event()
        assert [build async for build in first.events()] == []
        await first.task
        fourth = Stream(app, build_id, token)
        await fourth.event()
        async with asyncio.timeout(10):
            while open_streams.in_use != 2:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.01)
        other = Stream(app, build_id, service.pool.token("readers", sub="another"))
        assert (await other.event())["status"] == "queued"
        assert not third.task.done()
        stuck.reading.set()
        await stuck.task
        await service.resources.builds.cancel(build_id)
        for stream in (third, fourth, other):
            assert [build["status"] async for build in stream.events()] == ["cancelled"]
            await stream.task
        assert open_streams.in_use == 0
        assert app.context.admission.streams.in_use == 0


class Looks:
    """The look-ups of builds, which can be made to fail."""

    def __init__(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = 0
        self.errors: list[Exception] = []
        """Raised by the next ones, one each."""
        repository = type(service.resources.builds)
        get_build = repository.get_build

        async def look(builds: Any, build_id: str) -> Build:
            self.made += 1
            if self.errors:
                raise self.errors.pop()
            return await get_build(builds, build_id)

        monkeypatch.setattr(repository, "get_build", look)

    async def come(self, number: int = 1) -> None:
        """Waits for some more."""
        wanted = self.made + number
        async with asyncio.timeout(10):
            while self.made < wanted:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("error", [Unavailable("away"), Corrupt("a row"), RuntimeError("a bug")])
async def test_a_look_that_fails_ends_no_stream(
    service: Service, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Whatever it was, the next look tells what is new, and the end of the build."""
    build_id = await opened(service, f"m-events-{type(error).__name__}")
    async with quick(service) as app:
        stream = Stream(app, build_id, service.pool.token("readers"))
        assert (await stream.event())["status"] == "queued"
        looks = Looks(service, monkeypatch)
        looks.errors = [error, error]
        async with asyncio.timeout(10):
            while looks.errors:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.01)
        await looks.come()
        assert not stream.task.done()
        await service.resources.builds.cancel(build_id)
        assert [build["status"] async for build in stream.events()] == ["cancelled"]
        await stream.task


async def test_who_joins_is_told_what_is_so_by_now(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what the others were told last; and they are told as well, without another look."""
    build_id = await opened(service, "m-events-join")
    async with quick(service, event_poll_s=3600.0) as app:
        token = service.pool.token("readers")
        first = Stream(app, build_id, token)
        assert (await first.event())["status"] == "queued"
        await service.resources.builds.claim(build_id, 0)
        second = Stream(app, build_id, token)
        assert (await second.event())["status"] == "running"
        assert (await first.event())["status"] == "running"
        await service.resources.builds.cancel(build_id)
        third = Stream(app, build_id, token)
        for stream in (first, second, third):
            assert [build["status"] async for build in stream.events()] == ["cancelled"]
            await stream.task


async def test_looks_that_ended_begin_again_for_who_joins(service: Service) -> None:
    """A task that was lost, however that came, is replaced."""
    build_id = await opened(service, "m-events-again")
    async with quick(service) as app:
        assert app.context is not None
        first = Stream(app, build_id, service.pool.token("readers"))
        await first.event()
        (watched,) = app.context.build_events._watched.values()  # noqa: SLF001 - to break it
        assert watched.looking is not None
        watched.looking.cancel()
        async with asyncio.timeout(20):
            await asyncio.wait({watched.looking})
        second = Stream(app, build_id, service.pool.token("readers"))
        await second.event()
        await service.resources.builds.cancel(build_id)
        for stream in (first, second):
            assert [build["status"] async for build in stream.events()] == ["cancelled"]
            await stream.task


async def test_nobody_listens_nobody_looks(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one of two is there the looks go on; with the last one they end, and are made anew."""
    build_id = await opened(service, "m-events-none")
    async with quick(service) as app:
        token = service.pool.token("readers")
        streams = [Stream(app, build_id, token) for _ in range(2)]
        for stream in streams:
            await stream.event()
        looks = Looks(service, monkeypatch)
        await looks.come()
        streams[0].leave()
        await streams[0].task
        await looks.come(2)
        streams[1].leave()
        await streams[1].task
        made = looks.made
        await asyncio.sleep(0.3)
        assert looks.made <= made + 1  # one may have been under way
        late = Stream(app, build_id, token)
        await late.event()
        await looks.come(2)
        late.leave()
        await late.task
