"""DynamoDB with an index of reports that is late, as it may be."""

import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

from core.dynamo import tables
from core.dynamo.wire import Item, item_of

LATE_S = 0.15
"""The longest time that a write takes to show in the index."""

Call = Callable[..., Awaitable[dict[str, Any]]]


class LateIndex:
    """Stands before `Dynamo.call`, and answers queries of the index from a moment ago.

    Each write of a report shows after a time of its own; until then the index shows the report as
    it was before: not at all, in its earlier version, or still there. Writes of one report show in
    their order.
    """

    def __init__(self, call: Call, table: str, seed: int = 0) -> None:
        self._call = call
        self._table = table
        self._random = random.Random(seed)
        self._latest: dict[str, Item] = {}
        self._pending: dict[str, list[tuple[float, Item | None]]] = {}
        """By report: until when the index does not show a write, and what it shows instead."""
        self.hidden = 0
        """How many times something was shown as it no longer is."""

    async def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """Passes a call on; notes a write, and makes an answer of the index older."""
        reply = await self._call(operation, **parameters)
        if operation == "transact_write_items":
            for part in parameters["TransactItems"]:
                for kind, body in part.items():
                    if body["TableName"] == self._table:
                        self._note(kind, body)
        elif parameters.get("IndexName") == tables.USER_REPORTS_INDEX:
            return self._older(reply, parameters)
        return reply

    def _note(self, kind: str, body: dict[str, Any]) -> None:
        if kind == "Put":
            item = item_of(body["Item"])
            report_id = item["id"].S or ""
            before = self._latest.get(report_id)
            if before is None or _version(before) < _version(item):
                self._latest[report_id] = item
        elif kind == "Delete":
            report_id = body["Key"]["id"]["S"]
            before = self._latest.pop(report_id, None)
        else:
            return
        late_s = self._random.choice((0.0, self._random.uniform(0, LATE_S)))
        self._pending.setdefault(report_id, []).append((time.monotonic() + late_s, before))

    def _older(self, reply: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
        (owner,) = parameters["ExpressionAttributeValues"].values()
        start = parameters.get("ExclusiveStartKey", {}).get("created_at", {}).get("S")
        further = reply.get("LastEvaluatedKey")
        end = further["created_at"].S if further else None
        whole = "ProjectionExpression" not in parameters
        items: dict[str, Item] = {item["id"].S: item for item in reply["Items"]}
        for report_id, before in self._behind().items():
            if before is None:
                self.hidden += items.pop(report_id, None) is not None
            elif report_id in items:
                items[report_id] = before if whole else items[report_id]
                self.hidden += 1
            elif whole and before["user_id"].S == owner["S"]:
                created = before["created_at"].S or ""
                if (start is None or created < start) and (end is None or created > end):
                    items[report_id] = before
                    self.hidden += 1
        older = {**reply, "Items": list(items.values())}
        if whole:
            older["Items"].sort(key=lambda item: item["created_at"].S or "", reverse=True)
            if len(older["Items"]) > parameters["Limit"]:
                older["Items"] = older["Items"][: parameters["Limit"]]
                last = older["Items"][-1]
                older["LastEvaluatedKey"] = {
                    name: last[name] for name in ("id", "user_id", "created_at")
                }
        return older

    def _behind(self) -> dict[str, Item | None]:
        """The reports that the index shows as they were, and how."""
        moment = time.monotonic()
        for report_id in list(self._pending):
            left = self._pending[report_id]
            while left and left[0][0] <= moment:
                left.pop(0)
            if not left:
                del self._pending[report_id]
        return {report_id: left[0][1] for report_id, left in self._pending.items()}


def _version(item: Item) -> int:
    return int(item["version"].N or 0)
