"""What the users of `tests.load.run` do: a mix of searches, reports, writes, and a build at times.

Read by locust alone, since importing it replaces the standard library's sockets by gevent's.
"""

import os
from itertools import cycle
from random import Random
from time import perf_counter
from typing import Any, ClassVar, Final
from uuid import uuid4

import msgspec
import numpy as np
import pyarrow.parquet as pq
from locust import FastHttpUser, constant, events, task
from locust.env import Environment
from locust.exception import StopUser

from deploy.api_client import path_of
from deploy.local.sample import CATALOGUE, MODEL
from tests.load.report import Plan, Report

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
_BUILD_POLL_S: Final = 0.5
_BATCH_ROWS: Final = 20
_REPORTS_KEPT: Final = 5

_plan: Final = msgspec.json.decode(os.environ["K9_LOAD"], type=Plan)
_tokens: Final = cycle(_plan.tokens)
_catalogue: Final = pq.read_table(CATALOGUE)
_ids: Final[list[str]] = _catalogue["product_id"].to_pylist()
_vectors: Final = np.array(_catalogue["vector"].to_pylist(), dtype="<f4")
_report: Final = Report()


def _noted(name: str, response_time: float, exception: object, **_: Any) -> None:
    _report.add(name, response_time, None if exception is None else str(exception))


def _quitting(environment: Environment, **_: Any) -> None:
    environment.process_exit_code = _report.show(_plan.duration_s)


_events: Final[Any] = events  # whose methods have no types
_events.request.add_listener(_noted)
_events.quitting.add_listener(_quitting)


class _Client(FastHttpUser):
    """One client, with one token, and a product at random for each request."""

    abstract = True
    network_timeout = 30.0
    connection_timeout = 5.0
    wait_time = constant(_plan.think_s)
    seeds: ClassVar = cycle(range(1_000_000))

    def on_start(self) -> None:
        """Takes a token and a seed."""
        self.random = Random(next(self.seeds))
        self.token = next(_tokens)

    def ask(
        self,
        method: str,
        path: str,
        name: str,
        expected: tuple[int, ...] = (200,),
        *,
        body: object = None,
        media: str = JSON,
        headers: dict[str, str] | None = None,
    ) -> Any:
        """The answer; one with another status than those counts as an error."""
        sent = {"authorization": f"Bearer {self.token}", "accept": media, **(headers or {})}
        data: Any = None
        if body is not None:
            sent["content-type"] = media
            encode = msgspec.msgpack.encode if media == MSGPACK else msgspec.json.encode
            data = encode(body)
        with self.client.request(
            method, path, name=name, data=data, headers=sent, catch_response=True
        ) as reply:
            if reply.status_code in expected:
                reply.success()
            else:
                reply.failure(f"{reply.status_code} {(reply.text or '')[:200]}")
            return reply

    @property
    def row(self) -> int:
        """A product at random."""
        return self.random.randrange(len(_ids))


class Shopper(_Client):
    """Searches, and keeps reports."""

    weight = 5

    def on_start(self) -> None:
        """Begins without reports."""
        super().on_start()
        self.kept: list[tuple[str, str]] = []

    def on_stop(self) -> None:
        """Leaves no reports behind."""
        while self.kept:
            self.delete_report()

    @task(30)
    def search_by_id(self) -> None:
        """What is like this product?"""
        body = {"product_id": _ids[self.row], "k": 10}
        self.ask("POST", path_of("models", MODEL, "search"), "search by id", body=body)

    @task(12)
    def search_by_vector(self) -> None:
        """What is like this text, which was embedded elsewhere? In JSON."""
        body = {"vector": self._near(self.row).tolist(), "k": 10}
        self.ask("POST", path_of("models", MODEL, "search"), "search by vector, JSON", body=body)

    @task(12)
    def search_by_packed_vector(self) -> None:
        """The same in msgpack."""
        body = {"vector": self._near(self.row).tobytes(), "k": 10}
        path = path_of("models", MODEL, "search")
        self.ask("POST", path, "search by vector, msgpack", body=body, media=MSGPACK)

    @task(25)
    def neighbors(self) -> None:
        """The page of a product shows its neighbours."""
        path = path_of("models", MODEL, "products", _ids[self.row], "neighbors")
        self.ask("GET", f"{path}?k=10", "neighbours")

    @task(2)
    def models(self) -> None:
        """Which model versions are there?"""
        self.ask("GET", "/models", "list models")

    @task(4)
    def create_report(self) -> None:
        """A report with a few favourites."""
        favorites = [_ids[self.row] for _ in range(self.random.randint(0, 10))]
        body = {"title": "Load", "date": "2026-01-31", "favorites": favorites}
        key = f"load-{uuid4().hex}"  # of this run alone
        headers = {"idempotency-key": key}
        reply = self.ask("POST", "/reports", "create report", (201,), body=body, headers=headers)
        if reply.status_code == 201:
            made = msgspec.json.decode(reply.content)
            self.kept.append((made["id"], reply.headers["etag"]))
        if len(self.kept) > _REPORTS_KEPT:
            self.delete_report()

    @task(4)
    def list_reports(self) -> None:
        """The first page of the caller's reports."""
        self.ask("GET", "/reports?limit=20", "list reports")

    @task(4)
    def get_report(self) -> None:
        """One of them."""
        if self.kept:
            name, _ = self.random.choice(self.kept)
            self.ask("GET", path_of("reports", name), "get report")

    @task(3)
    def change_report(self) -> None:
        """A new title, if nobody changed it meanwhile."""
        if self.kept:
            place = self.random.randrange(len(self.kept))
            name, tag = self.kept[place]
            body = {"title": "Load, renamed"}
            path = path_of("reports", name)
            reply = self.ask("PATCH", path, "patch report", body=body, headers={"if-match": tag})
            if reply.status_code == 200:
                self.kept[place] = (name, reply.headers["etag"])

    @task(1)
    def delete_report(self) -> None:
        """The oldest goes."""
        if self.kept:
            name, _ = self.kept.pop(0)
            self.ask("DELETE", path_of("reports", name), "delete report", (204,))

    def _near(self, row: int) -> Any:
        """A vector near a product's, float32 (d,)."""
        noise = np.random.default_rng(self.random.getrandbits(32)).normal(size=_vectors.shape[1])
        return _vectors[row] + np.asarray(0.02 * noise, dtype="<f4")


class Importer(_Client):
    """Writes embeddings: the sample's own again, so that a run leaves it as it was."""

    weight = 1

    def on_start(self) -> None:
        """Takes the operator's token."""
        super().on_start()
        self.token = _plan.operator

    @task(10)
    def put(self) -> None:
        """One embedding in JSON."""
        row = self.row
        path = path_of("models", MODEL, "embeddings", _ids[row])
        self.ask("PUT", path, "put embedding", (200, 201), body={"vector": _vectors[row].tolist()})

    @task(5)
    def get(self) -> None:
        """One embedding in msgpack."""
        path = path_of("models", MODEL, "embeddings", _ids[self.row])
        self.ask("GET", path, "get embedding", media=MSGPACK)

    @task(1)
    def batch(self) -> None:
        """A few embeddings in msgpack."""
        rows = self.random.sample(range(len(_ids)), _BATCH_ROWS)
        entries = [{"product_id": _ids[row], "vector": _vectors[row].tobytes()} for row in rows]
        path = f"{path_of('models', MODEL)}/embeddings:batch"
        body = {"embeddings": entries}
        self.ask("POST", path, f"batch of {_BATCH_ROWS}", body=body, media=MSGPACK)


class Builder(_Client):
    """Has the index built anew now and then, and watches."""

    fixed_count = 1
    wait_time = constant(_BUILD_POLL_S)

    def on_start(self) -> None:
        """Takes the operator's token."""
        super().on_start()
        self.token = _plan.operator
        self.build_id: str | None = None
        self.next_at = perf_counter()

    @task
    def step(self) -> None:
        """Requests a build when it is time, and looks how far it is."""
        if self.build_id is None:
            if perf_counter() >= self.next_at:
                path = path_of("models", MODEL, "builds")
                reply = self.ask("POST", path, "request build", (202,), body={"force": True})
                if reply.status_code != 202:
                    raise StopUser
                self.build_id = msgspec.json.decode(reply.content)["build_id"]
                self.next_at = perf_counter() + _plan.build_every_s
            return
        reply = self.ask("GET", path_of("builds", self.build_id), "get build")
        build = msgspec.json.decode(reply.content) if reply.status_code == 200 else {}
        if build.get("status") in {"failed", "cancelled"}:
            _report.add("build", 0.0, f"{build['status']}: {build.get('error')}")
        if build.get("status") == "published":
            _report.builds += 1
        if build.get("status") not in {"queued", "running"}:
            self.build_id = None
