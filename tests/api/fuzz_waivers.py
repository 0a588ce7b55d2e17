"""What schemathesis complains of though the contract says so: each with its reason.

All checks are on. A complaint is waived only where the answer itself says that it is one of these.
"""

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.core.transport import Response
from schemathesis.generation.case import Case
from schemathesis.openapi.checks import RejectedPositiveData, UseAfterFree

from core.limits import BOOST_MAX

ACCEPTABLE: Final = ("2xx", "401", "403", "404", "409", "412", "5xx")
"""Of a request that holds by the document. 404, 409 and 412 are about what is there, not about the
request; 5xx has a check of its own."""

UNCOVERED: Final[list[dict[str, Any]]] = [
    each
    for each in tomllib.loads((Path(__file__).parents[2] / "schemathesis.toml").read_text())[
        "operations"
    ]
    if "phases" in each
]
"""Settings of the operations of which not each constraint is tried, as `schemathesis run` has."""

REFUSALS: Final[dict[str, str]] = {
    r"(vector|vectors\[\d+\]|embeddings\[\d+\]\.vector|tive\[\d+\]) has \d+ numbers": (
        "a vector has as many numbers as its model version, which is data"
    ),
    r"bytes, which is no whole number of float32": (
        "a packed vector has four bytes a number, and JSON Schema cannot say so"
    ),
    r"has a norm of": "the norm is of all numbers together, and a maximum of each of them",
    r"has norm 0, which has no direction": "cosine takes no zero vector",
    r"no dimension is that of most of": "what most entries have is of all of them together",
    r"is in the batch already": "each id once: unique by a member, which JSON Schema cannot say",
    r"has \d+ bytes, over the limit": "ids are limited in bytes, and maxLength counts characters",
    r"times k of \d+ is over|k times vectors": "vectors times k is a product, no limit of either",
    r"times positive examples is over": "likewise positive examples times k",
    r"with `positive` \d+ examples": "two lists have a limit together",
    r"(has|removes) \d+ names, the most": "null removes a name, and no others are counted",
    r"must be above `min`": "one number is above another, and each has its own limits",
    r"one (value|condition) too many": "a filter is counted over all of its parts together",
    r"`group_by`": "fields that do not go together; their default, which says nothing, does",
    r"is not available to this caller": "which names are internal is data",
    r"^filter (is no JSON|takes an object)": "a filter in a query is text, of any form",
    r"the cursor is not valid": "a cursor is sealed, and only one that was given out opens",
    r"the watermark is not valid": "likewise a watermark",
    r"Expected `int`, got `float`": "to JSON Schema 7.0 is an integer; K9 wants it written as 7",
    r"must be an https URL": "what is a host is beyond a pattern",
    r"names no object in the bucket|has to begin with environments/": "what is there is data",
    r"is the column of the ids|has the ids or the vectors": "a name stands in one field alone",
    r"content_length is over the limit": "an operator may set a lower limit than S3 has",
    r"the idempotency key was used|was used for another": "a key goes with one request",
}
"""What a refusal of a request that holds by the document says → why the document cannot."""


@dataclass(frozen=True)
class Waiver:
    """One kind of complaint that the contract contradicts."""

    kind: type[Failure]
    applies: Callable[[Case[Any], Response], bool]
    reason: str


def _is_deletion_of_a_user(case: Case[Any], _response: Response) -> bool:
    return bool(case.operation.path == "/users/{user_id}")


def _is_of_a_build(case: Case[Any], _response: Response) -> bool:
    return bool(case.operation.path.startswith(("/builds/{build_id}", "/imports/{import_id}")))


def _is_of_a_model(case: Case[Any], _response: Response) -> bool:
    return bool(case.operation.path.startswith("/models/{model_version}"))


def _rounds_to_the_bound(case: Case[Any], _response: Response) -> bool:
    """Whether a boost has a whole number beyond its bound that as a float64 is the bound."""
    body: Any = case.body
    boosts = body.get("boost") if isinstance(body, dict) else None
    return any(
        isinstance(value, int) and abs(value) > BOOST_MAX >= abs(float(value))
        for boost in boosts or ()
        if isinstance(boost, dict)
        for value in boost.values()
    )


WAIVERS: Final = (
    Waiver(
        AcceptedNegativeData,
        _rounds_to_the_bound,
        "a number of JSON or msgpack is a float64, and 1e18 and one is 1e18",
    ),
    Waiver(
        UseAfterFree,
        _is_of_a_model,
        "a model version that is being deleted is there until the worker is done (202)",
    ),
    Waiver(UseAfterFree, _is_of_a_build, "a build that was cancelled stays in the history"),
    Waiver(
        UseAfterFree,
        _is_deletion_of_a_user,
        "a user that is being deleted is there until the worker is done (202)",
    ),
)


def reason_for(failure: Failure, case: Case[Any], response: Response) -> str | None:
    """Why a complaint is none; None where it is one."""
    if isinstance(failure, RejectedPositiveData):
        return _refusal(response)
    for waiver in WAIVERS:
        if isinstance(failure, waiver.kind) and waiver.applies(case, response):
            return waiver.reason
    return None


def _refusal(response: Response) -> str | None:
    try:
        problem: Any = msgspec.json.decode(response.content)
    except msgspec.DecodeError:
        return None
    said = [f"{entry['field']} {entry['message']}" for entry in problem.get("errors") or ()]
    reasons = [
        next((why for pattern, why in REFUSALS.items() if re.search(pattern, text)), None)
        for text in said or [problem.get("detail", "")]
    ]
    return None if None in reasons else reasons[0]
