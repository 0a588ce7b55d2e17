"""A user who does one random thing after another, and knows what has to come of each."""

import time
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from core.resources import Resources
from tests.api.late_index import LATE_S
from tests.api.people import same
from tests.merge_patch import merged
from worker.user_deletion import delete_user

NOWHERE = "0" * 32


@dataclass(frozen=True, slots=True)
class Move:
    """One operation, and whatever it may need."""

    kind: str
    pick: int
    fields: dict[str, Any]
    preferences: dict[str, Any]
    match: str
    size: int
    keyed: bool


class Together(Protocol):
    """Runs operations, all at once or one after the other; their answers in order."""

    async def __call__(self, *operations: Any) -> list[Any]:
        """Raises the first error, once all have ended."""


class Actor:
    """One user, and a model of all that is theirs."""

    def __init__(
        self, sub: str, client: httpx.AsyncClient, resources: Resources, together: Together
    ) -> None:
        self.sub = sub
        self._client = client
        self._resources = resources
        self._together = together
        self.moves = 0
        self.profile: dict[str, Any] | None = None
        self.reports: dict[str, dict[str, Any]] = {}
        self.tags: dict[str, str] = {}
        self.cursors: list[str] = []
        self._made: dict[str, float] = {}
        self._versions: dict[str, list[tuple[dict[str, Any], float | None]]] = {}
        """Every body that each report has had, and when it was no longer so."""
        self._kept: list[tuple[dict[str, Any], httpx.Response]] = []
        """Requests that were sent under a key, and their answers."""
        self._keys = 0

    async def act(self, move: Move, other: "Actor") -> None:
        """Makes the move, and checks what comes of it."""
        self.moves += 1
        await getattr(self, f"do_{move.kind}")(move, other)

    async def check(self) -> None:
        """Compares all that there is with the model, once the index has settled."""
        await self._walk(100, settled=True)
        for report_id in self.reports:
            await self._read(report_id)
        await self.do_get_user(None, None)

    # --- reports ------------------------------------------------------------------------------

    async def do_create(self, move: Move, _other: "Actor") -> None:
        """Creates a report."""
        reply = await self._send("POST", "/reports", move.fields, keyed=move.keyed)
        self._created(reply, move.fields)

    async def do_get(self, move: Move, _other: "Actor") -> None:
        """Reads a report."""
        if report_id := self._pick(move):
            await self._read(report_id)

    async def do_patch(self, move: Move, _other: "Actor") -> None:
        """Changes a report, of any version or of one."""
        if report_id := self._pick(move):
            headers, holds = self._matching(report_id, move.match)
            reply = await self._send(
                "PATCH", f"/reports/{report_id}", move.fields, headers, keyed=move.keyed
            )
            assert reply.status_code == (200 if holds else 412), reply.text
            if holds:
                self._changed(report_id, [(reply, move.fields)])

    async def do_delete(self, move: Move, _other: "Actor") -> None:
        """Deletes a report, of any version or of one."""
        if report_id := self._pick(move):
            headers, holds = self._matching(report_id, move.match)
            path = f"/reports/{report_id}"
            reply = await self._send("DELETE", path, None, headers, keyed=move.keyed)
            assert reply.status_code == (204 if holds else 412), reply.text
            if holds:
                self._deleted(report_id)

    async def do_list(self, move: Move, _other: "Actor") -> None:
        """Reads all reports, page by page."""
        await self._walk((1, 2, 3, 5, 20)[move.size % 5])

    # --- the profile --------------------------------------------------------------------------

    async def do_create_user(self, move: Move, _other: "Actor") -> None:
        """Creates the profile, unless there is one."""
        sent = {"name": move.fields["title"], "preferences": move.preferences}
        reply = await self._send("POST", "/users", sent, keyed=move.keyed)
        if self.profile is not None:
            assert reply.status_code == 409, reply.text
            return
        assert reply.status_code == 201, reply.text
        self.profile = reply.json()
        assert sent.items() <= reply.json().items()

    async def do_get_user(self, _move: Move | None, _other: "Actor | None") -> None:
        """Reads the profile."""
        reply = await self._client.get("/users/me")
        assert reply.status_code == (404 if self.profile is None else 200)
        assert self.profile is None or reply.json() == self.profile

    async def do_patch_user(self, move: Move, _other: "Actor") -> None:
        """Changes the profile in several places at once."""
        patches: list[dict[str, Any]] = [
            {"name": move.fields.get("author")},
            {"email": "a@b"},
            *({"preferences": {f"k{place}": move.preferences}} for place in range(move.size)),
        ]
        replies = await self._together(
            *(self._send("PATCH", "/users/me", patch) for patch in patches)
        )
        if self.profile is None:
            assert [reply.status_code for reply in replies] == [404] * len(patches)
            return
        assert [reply.status_code for reply in replies] == [200] * len(patches), replies[0].text
        last = max(replies, key=lambda reply: str(reply.json()["updated_at"])).json()
        preferences = dict(self.profile["preferences"])
        for patch in patches[2:]:
            for name, value in patch["preferences"].items():
                preferences[name] = merged(preferences.get(name), value)
        self.profile |= {
            "name": move.fields.get("author"),
            "email": "a@b",
            "preferences": preferences,
            "updated_at": last["updated_at"],
        }
        await self.do_get_user(None, None)

    async def do_leave(self, move: Move, _other: "Actor") -> None:
        """Deletes the profile; until a worker has removed all of it nothing can be written."""
        reply = await self._send("DELETE", "/users/me")
        if self.profile is None:
            assert reply.status_code == 404
            return
        assert reply.status_code == 202, reply.text
        writes = [("POST", "/users", {}), ("POST", "/reports", move.fields)]
        writes += [("PATCH", f"/reports/{one}", move.fields) for one in [*self.reports][:2]]
        for method, path, body in writes:
            assert (await self._send(method, path, body)).status_code == 409
        await delete_user(self._resources, self.sub)
        for report_id in list(self.reports):
            self._deleted(report_id)
            reply = await self._client.get(f"/reports/{report_id}")
            assert reply.status_code == 404
        self.profile = None
        self._kept.clear()

    # --- what is the other's ------------------------------------------------------------------

    async def do_guess(self, move: Move, other: "Actor") -> None:
        """Names what is the other's: the answer is that of what does not exist."""
        theirs = [*other.reports]
        guessed = theirs[move.pick % len(theirs)] if theirs else NOWHERE[1:] + "1"
        tag = other.tags.get(guessed, '"1"')
        match = {"fresh": tag, "star": "*", "several": f'"9", {tag}', "stale": '"99"'}
        headers = {"if-match": match[move.match]} if move.match in match else {}
        method = ("GET", "PATCH", "DELETE")[move.size % 3]
        body = move.fields if method == "PATCH" else None
        for mine, nobodys in (
            (f"/reports/{guessed}", f"/reports/{NOWHERE}"),
            (f"/users/{other.sub}", "/users/nobody"),
        ):
            sent = {"name": "x"} if "users" in mine and body else body
            replies = await self._together(
                *(self._send(method, path, sent, headers) for path in (mine, nobodys))
            )
            assert same(*replies).status_code == 404

    async def do_borrow_cursor(self, move: Move, other: "Actor") -> None:
        """Goes on where the other was: refused as a made up cursor is."""
        if other.cursors:
            cursor = other.cursors[move.pick % len(other.cursors)]
            replies = [
                await self._client.get("/reports", params={"cursor": one})
                for one in (cursor, "made-up")
            ]
            assert same(*replies).status_code == 400

    # --- keys ---------------------------------------------------------------------------------

    async def do_replay(self, move: Move, _other: "Actor") -> None:
        """Sends an earlier request again: the answer is the same, and nothing happens."""
        if self._kept:
            request, before = self._kept[move.pick % len(self._kept)]
            same(before, await self._client.request(**request))
            changed = {**request, "json": {"title": "another request"}}
            assert (await self._client.request(**changed)).status_code == 422

    async def do_race_key(self, move: Move, _other: "Actor") -> None:
        """Sends the same request several times at once: one report comes of it."""
        request = self._keyed({"method": "POST", "url": "/reports", "json": move.fields})
        replies = await self._together(
            *(self._client.request(**request) for _ in range(move.size + 1))
        )
        assert {reply.status_code for reply in replies} <= {201, 409}
        done = [reply for reply in replies if reply.status_code == 201]
        self._created(same(*done, await self._client.request(**request)), move.fields)
        self._kept.append((request, done[0]))

    # --- races with oneself -------------------------------------------------------------------

    async def do_race_patch(self, move: Move, _other: "Actor") -> None:
        """Changes each field at once: all changes are kept."""
        if report_id := self._pick(move):
            patches = [{name: value} for name, value in move.fields.items()]
            replies = await self._together(
                *(self._send("PATCH", f"/reports/{report_id}", patch) for patch in patches)
            )
            assert [reply.status_code for reply in replies] == [200] * len(patches), replies
            self._changed(report_id, list(zip(replies, patches, strict=True)))
            await self._read(report_id)

    async def do_race_version(self, move: Move, _other: "Actor") -> None:
        """Changes one version several times at once: one change holds."""
        if report_id := self._pick(move):
            headers = {"if-match": self.tags[report_id]}
            path = f"/reports/{report_id}"
            patches = [{**move.fields, "title": f"t{n}"} for n in range(move.size + 1)]
            replies = await self._together(
                *(self._send("PATCH", path, patch, headers) for patch in patches)
            )
            codes = sorted(reply.status_code for reply in replies)
            assert codes == [200] + [412] * move.size
            done = [pair for pair in zip(replies, patches, strict=True) if pair[0].is_success]
            self._changed(report_id, done)
            await self._read(report_id)

    async def do_race_delete(self, move: Move, _other: "Actor") -> None:
        """Deletes and changes at once: one deletion is, and what is deleted stays so."""
        if report_id := self._pick(move):
            path = f"/reports/{report_id}"
            replies = await self._together(
                self._send("PATCH", path, move.fields),
                *(self._send("DELETE", path) for _ in range(move.size)),
                self._send("PATCH", path, move.fields),
            )
            codes = [reply.status_code for reply in replies]
            assert sorted(codes[1:-1]) == [204] + [404] * (move.size - 1)
            assert {codes[0], codes[-1]} <= {200, 404}
            done = [(reply, move.fields) for reply in (replies[0], replies[-1]) if reply.is_success]
            self._changed(report_id, done)
            self._deleted(report_id)
            assert (await self._client.get(path)).status_code == 404

    # --- the model ----------------------------------------------------------------------------

    def _pick(self, move: Move) -> str | None:
        ids = [*self.reports]
        return ids[move.pick % len(ids)] if ids else None

    def _matching(self, report_id: str, match: str) -> tuple[dict[str, str], bool]:
        """An `If-Match`, and whether it holds."""
        tag = self.tags[report_id]
        old = f'"{int(tag[1:-1]) - 1}"'
        value, holds = {
            "none": (None, True),
            "fresh": (tag, True),
            "star": ("*", True),
            "several": (f'{old}, "x, y", {tag}', True),
            "stale": (old, False),
            "weak": (f"W/{tag}", False),
        }[match]
        return ({} if value is None else {"if-match": value}), holds

    async def _send(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        *,
        keyed: bool = False,
    ) -> httpx.Response:
        request: dict[str, Any] = {"method": method, "url": path, "headers": headers or {}}
        if body is not None:
            request["json"] = body
        if keyed:
            request = self._keyed(request)
        reply = await self._client.request(**request)
        if keyed:
            self._kept.append((request, reply))
        return reply

    def _keyed(self, request: dict[str, Any]) -> dict[str, Any]:
        """Under the next key; both users take the same ones."""
        self._keys += 1
        headers = {**request.get("headers", {}), "idempotency-key": f"key-{self._keys}"}
        return {**request, "headers": headers}

    def _created(self, reply: httpx.Response, fields: dict[str, Any]) -> None:
        assert reply.status_code == 201, reply.text
        body = reply.json()
        assert body["id"] not in self._versions
        assert body.items() >= {**shown(fields), "user_id": self.sub}.items()
        self.reports[body["id"]] = body
        self.tags[body["id"]] = reply.headers["etag"]
        self._made[body["id"]] = time.monotonic()
        self._versions[body["id"]] = [(body, None)]

    def _changed(self, report_id: str, done: list[tuple[httpx.Response, dict[str, Any]]]) -> None:
        """Enters changes in the order of their versions, which have no gap."""
        for reply, fields in sorted(done, key=lambda pair: int(pair[0].headers["etag"][1:-1])):
            body = reply.json()
            expected = self.reports[report_id] | shown(fields)
            assert body == expected | {"updated_at": body["updated_at"]}
            assert int(reply.headers["etag"][1:-1]) == int(self.tags[report_id][1:-1]) + 1
            self._retire(report_id)
            self._versions[report_id].append((body, None))
            self.reports[report_id], self.tags[report_id] = body, reply.headers["etag"]

    def _deleted(self, report_id: str) -> None:
        self._retire(report_id)
        del self.reports[report_id], self.tags[report_id]

    def _retire(self, report_id: str) -> None:
        body, _ = self._versions[report_id].pop()
        self._versions[report_id].append((body, time.monotonic()))

    async def _read(self, report_id: str) -> None:
        reply = await self._client.get(f"/reports/{report_id}")
        assert reply.json() == self.reports[report_id]
        assert reply.headers["etag"] == self.tags[report_id]

    async def _walk(self, limit: int, *, settled: bool = False) -> None:
        """All pages: each report once, in a version that the index may still show."""
        begun = time.monotonic()
        seen: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            parameters: dict[str, Any] = {"limit": limit} | ({"cursor": cursor} if cursor else {})
            page = (await self._client.get("/reports", params=parameters)).json()
            assert len(page["items"]) <= limit
            seen += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                break
            self.cursors.append(cursor)
        ids = [item["id"] for item in seen]
        assert len(ids) == len(set(ids))
        since = begun - LATE_S
        for item in seen:
            assert item["user_id"] == self.sub
            assert any(
                item == body and (ended is None or ended >= since)
                for body, ended in self._versions[item["id"]]
            ), item
        assert {one for one in self.reports if self._made[one] < since} <= set(ids)
        if settled:
            newest = sorted(self.reports.values(), key=lambda one: one["created_at"], reverse=True)
            assert seen == newest


def shown(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields as they are answered: each favorite once."""
    if "favorites" not in fields:
        return fields
    return {**fields, "favorites": list(dict.fromkeys(fields["favorites"] or ()))}
