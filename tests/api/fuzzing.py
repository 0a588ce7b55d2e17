"""schemathesis against a running API: what it is told, what it may complain of, what came of it."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any, Final
from urllib.parse import quote
from uuid import uuid4

import httpx
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import Failure
from schemathesis.core.transport import Response
from schemathesis.engine import Status, events, from_schema
from schemathesis.generation.case import Case

from api.app import CONTROLLERS
from api.openapi.document import document
from core.settings import Settings
from tests.api.fuzz_msgpack import DIMENSION
from tests.api.fuzz_waivers import ACCEPTABLE, UNCOVERED, reason_for

_REAL: Final = 0.9
"""How many of the ids in paths are of something that is there."""
_FILL: Final = (0.5, -0.25)
_K_OF_MANY: Final = 30
_KEY_MAX: Final = 200


@dataclass(frozen=True)
class Known:
    """Where the API is, who asks, and what is there: the document says which ids to send."""

    url: str
    operator: str
    users: tuple[str, ...]
    """Tokens of callers whose profiles come and go."""
    model_version: str
    products: tuple[str, ...]
    builds: tuple[str, ...]
    reports: tuple[str, ...]
    spare_products: tuple[str, ...]
    """That may be deleted."""
    spare_reports: tuple[str, ...]
    spare_models: tuple[str, ...]
    watermark: str
    cursors: Mapping[str, str]
    """Path of a list → the cursor of its second page."""


@dataclass
class Tally:
    """What came of a run."""

    statuses: defaultdict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    """Operation → status → how often."""
    failures: dict[str, str] = field(default_factory=dict)
    """What a check complained of, once a kind and operation."""
    held: Counter[bool] = field(default_factory=Counter)
    """Whether it had a 2xx → how many of the cases that were made to hold by the document."""
    waived: Counter[str] = field(default_factory=Counter)
    """Reason → how often a complaint was waived for it."""
    errors: list[str] = field(default_factory=list)
    """What kept schemathesis itself from its work."""

    @property
    def cases(self) -> int:
        """How many requests were answered."""
        return sum(counts.total() for counts in self.statuses.values())

    @property
    def successes(self) -> int:
        """How many of them with a 2xx."""
        return sum(map(_successes, self.statuses.values()))

    def lines(self) -> list[str]:
        """The report."""
        found = [
            f"{label:70}{counts.total():>7,}{_successes(counts) / counts.total():>7.0%}  "
            + " ".join(f"{status}x{count}" for status, count in sorted(counts.items()))
            for label, counts in sorted(self.statuses.items())
        ]
        share = self.successes / max(self.cases, 1)
        found.append(f"{'all':70}{self.cases:>7,}{share:>7.0%}")
        found.append(f"made to hold {self.held.total():,}, of which {self.held[True]:,} with a 2xx")
        found += [f"waived {count:>6,} x {reason}" for reason, count in self.waived.most_common()]
        found += [f"error: {error}" for error in self.errors]
        return found + [f"failure: {failure}" for failure in self.failures.values()]


def _successes(counts: Counter[int]) -> int:
    return sum(count for status, count in counts.items() if 200 <= status < 300)


@dataclass(frozen=True)
class Effort:
    """How many cases to make."""

    positive: int
    """Cases an operation that hold by the document."""
    negative: int
    """Cases an operation that do not."""
    stateful: int
    """Chains of requests along the links."""
    coverage: bool = True
    """Each constraint of the document, kept to and broken: 60 cases an operation."""


def explore(known: Known, effort: Effort, *, seed: int) -> Tally:
    """Runs schemathesis; blocks until it is done.

    Args:
        known: The service.
        effort: How many cases to make.
        seed: The same makes the same cases, though not the same answers.
    """
    tally = Tally()
    models = cycle(known.spare_models)

    def before_call(context: Any, case: Any, kwargs: Any) -> None:
        """Deletes none but spare model versions, and ends the imports whose events are asked for.

        The other requests are about the real model version; and an import may wait 15 minutes for
        its upload, with its events open.
        """
        _own_key(context, case, kwargs)
        operation = case.operation.method.lower(), case.operation.path
        named = (case.path_parameters or {}).get("model_version")
        if operation == ("delete", "/models/{model_version}") and named == known.model_version:
            case.path_parameters["model_version"] = next(models)
        if operation == ("get", "/imports/{import_id}/events"):
            import_id = quote(str(case.path_parameters["import_id"]), safe="")
            httpx.delete(
                f"{known.url}/imports/{import_id}",
                headers={"Authorization": f"Bearer {known.operator}"},
            )

    schemathesis.hook("before_call")(before_call)
    try:
        for part in _rounds(effort):
            _run(known, part, seed, tally)
    finally:
        schemathesis.hooks.unregister(before_call)
    return tally


def _own_key(_context: Any, case: Any, _kwargs: Any) -> None:
    """Another idempotency key for most requests: the same one again, and other checks see no more.

    schemathesis likes to send the shortest one, which then belongs to the first request of all.
    """
    data = case.meta.phase.data if case.meta else None
    if getattr(data, "parameter", None) == "Authorization":
        return  # a case without a token: touched, it would get one
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str) and key.isprintable() and key.isascii() and 0 < len(key) <= _KEY_MAX:
        case.headers["Idempotency-Key"] = f"{key}-{uuid4().hex}"


def _callers(known: Known) -> type[Any]:
    """Who asks: an operator, but profiles have callers of their own, for each is created once."""
    users = cycle(known.users)
    current = next(users)

    class Callers:
        def get(self, case: Any, _context: Any) -> str:
            nonlocal current
            if not case.operation.path.startswith("/users"):
                return known.operator
            if case.operation.method.lower() == "post":
                current = next(users)
            return current

        def set(self, case: Any, data: str, _context: Any) -> None:
            case.headers = {**(case.headers or {}), "Authorization": f"Bearer {data}"}

    return Callers


@dataclass(frozen=True)
class _Part:
    """One run of schemathesis."""

    phases: dict[str, Any]
    holds: bool = True
    """Whether its requests are to hold by the document."""
    accept: str = "application/json"


def _rounds(effort: Effort) -> list[_Part]:
    """Examples and what holds, the same answered in msgpack, the links, and what does not hold."""
    off = {"enabled": False}
    alone = {"examples": off, "coverage": off, "fuzzing": off, "stateful": off}
    good = {"examples": {"enabled": True}, "fuzzing": _amount("positive", effort.positive)}
    packed = {"fuzzing": _amount("positive", max(effort.positive // 10, 2))}
    linked = {"stateful": {**_amount("positive", effort.stateful), "max-steps": 8}}
    bad = {
        "coverage": {"enabled": effort.coverage},
        "fuzzing": _amount("negative", effort.negative),
    }
    return [
        _Part(alone | good),
        _Part(alone | packed, accept="application/msgpack"),
        _Part(alone | linked),
        _Part(alone | bad, holds=False),
    ]


def _amount(mode: str, cases: int) -> dict[str, Any]:
    return {"enabled": cases > 0, "generation": {"mode": mode, "max-examples": max(cases, 1)}}


def _values(known: Known) -> dict[str, Any]:
    """Real ids and cursors for most cases, for the parameters of these names."""
    values: dict[str, tuple[str, ...]] = {
        "path.model_version": (known.model_version,),
        "path.build_id": known.builds,
        "path.user_id": ("me",),
        "body.build_id": known.builds,
        "body.min_watermark": (known.watermark,),
    }
    return {
        "dictionaries": {name: {"values": list(found)} for name, found in values.items()},
        "parameters": {name: {"dictionary": name, "probability": _REAL} for name in values},
    }


def _run(known: Known, part: _Part, seed: int, tally: Tally) -> None:
    config = SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "base-url": known.url,
            "request-timeout": 30,
            "continue-on-failure": True,
            "generation": {"database": "none", "no-shrink": True},
            "suppress-health-check": ["all"],
            "cache": {"enabled": False},
            "phases": part.phases,
            "operations": UNCOVERED,
            "headers": {"Accept": part.accept},
            "checks": {"positive_data_acceptance": {"expected-statuses": list(ACCEPTABLE)}},
            **_values(known),
        }
    )
    schema = schemathesis.openapi.from_url(f"{known.url}/openapi.json", config=config)
    schema.auth(refresh_interval=None)(_callers(known))
    _waive(schema, tally)
    if part.holds:
        _Steering(known, seed).hook(schema)
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            _note(event, tally, holds=part.holds)
        elif isinstance(event, events.NonFatalError):
            tally.errors.append(f"{event.label}: {event.info.title} {event.value!r}"[:500])
        elif isinstance(event, events.FatalError):
            raise event.exception


def _waive(schema: Any, tally: Tally) -> None:
    """Lets pass what the contract says."""

    def contradicted(_context: Any, failure: Failure, case: Case[Any], response: Response) -> bool:
        reason = reason_for(failure, case, response)
        if reason is not None:
            tally.waived[reason] += 1
        return reason is None

    schema.hook("filter_failure")(contradicted)


def _function(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method as schemathesis takes hooks: it notes on each where it applies."""

    @wraps(method)
    def hook(*arguments: Any) -> Any:
        return method(*arguments)

    return hook


class _Steering:
    """Has most requests be of what is there, which no document can know."""

    def __init__(self, known: Known, seed: int) -> None:
        self._known = known
        self._random = Random(seed)
        self._products = cycle(known.spare_products)
        self._reports = cycle(known.spare_reports)

    def hook(self, schema: Any) -> None:
        """Has schemathesis ask for each part of each request."""
        schema.hook("map_path_parameters")(_function(self.path))
        schema.hook("map_query")(_function(self.query))
        schema.hook("map_headers")(_function(self.headers))
        schema.hook("map_body")(_function(self.body))

    def path(self, context: Any, held: Any) -> Any:
        """What may be deleted for writes, and what stays for reads."""
        if not held or not self._mostly:
            return held
        known, random = self._known, self._random
        writes = context.operation.method.lower() in {"put", "delete"}
        real = dict(held)
        if "product_id" in held:
            real["product_id"] = next(self._products) if writes else random.choice(known.products)
        if "report_id" in held:
            real["report_id"] = next(self._reports) if writes else random.choice(known.reports)
        return real

    def query(self, context: Any, query: Any) -> Any:
        """The second page."""
        if query and query.get("cursor") and self._mostly:
            return {**query, "cursor": self._known.cursors.get(context.operation.path, "")}
        return query

    def headers(self, _context: Any, headers: Any) -> Any:
        """Any version."""
        if headers and headers.get("If-Match") and self._mostly:
            return {**headers, "If-Match": "*"}
        return headers

    def body(self, _context: Any, body: Any) -> Any:
        """A product of the index, and vectors as long as it has them."""
        if not isinstance(body, dict) or not self._mostly:
            return body
        if "product_id" in body:
            return {**body, "product_id": self._random.choice(self._known.products)}
        return fitted(body)

    @property
    def _mostly(self) -> bool:
        return self._random.random() < _REAL


def fitted(body: dict[str, Any]) -> dict[str, Any]:
    """The same with vectors as long as those of the model version, and each id once.

    A vector of any length holds by the document; one of another length than the model version's is
    refused all the same, which is worth a few cases and no more.
    """
    held = dict(body)
    if "vector" in held:
        held["vector"] = _fitted(held["vector"])
    if "vectors" in held:
        held["vectors"] = [_fitted(vector) for vector in held["vectors"]]
        held["k"] = min(held.get("k", 10), _K_OF_MANY)
    if "recommend" in held:
        held["recommend"] = {
            name: [_fitted(each) for each in value] if isinstance(value, list) else value
            for name, value in held["recommend"].items()
        }
    if "embeddings" in held:
        entries = {entry["product_id"]: fitted(entry) for entry in held["embeddings"]}
        held["embeddings"] = list(entries.values())
    return held


def _fitted(vector: Any) -> Any:
    return [*vector, *_FILL][:DIMENSION] if isinstance(vector, list) else vector


def assert_all_well(tally: Tally, log: Path) -> None:
    """Checks what must hold of every run."""
    report = "\n".join(tally.lines())
    assert not tally.failures, report
    assert not tally.errors, report
    paths = document(CONTROLLERS, Settings())["paths"]
    routes = {f"{method.upper()} {path}" for path in paths for method in paths[path]}
    assert set(tally.statuses) == routes, report
    assert tally.held[True] >= tally.held[False], report
    assert not log.read_text(), log.read_text()


def _note(event: events.ScenarioFinished, tally: Tally, *, holds: bool) -> None:
    for case_id, interaction in event.recorder.interactions.items():
        case = event.recorder.cases[case_id].value
        if interaction.response is None:
            tally.errors.append(f"{case.operation.label}: no answer")
            continue
        tally.statuses[case.operation.label][interaction.response.status_code] += 1
        if holds:
            tally.held[200 <= interaction.response.status_code < 300] += 1
    for case_id, checks in event.recorder.checks.items():
        for check in checks:
            if check.status is not Status.FAILURE or check.failure_info is None:
                continue
            case = event.recorder.cases[case_id].value
            failure = check.failure_info.failure
            answer = event.recorder.interactions[case_id].response
            said = "" if answer is None else f"{answer.status_code} {answer.text[:300]}"
            tally.failures.setdefault(
                f"{case.operation.label} {check.name} {failure.message[:60]}",
                f"{case.operation.label}: {check.name}: {failure.message}\n"
                f"    {check.failure_info.code_sample[:600]}\n    {said}",
            )
