"""Calls of AWS whose failure is a finding, not an error: `k9 doctor` examines rights by them."""

import asyncio
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal

import msgspec
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from core.aws import DENIED, UNACCEPTED
from deploy.aws.clients import code_of, message_of

_TIMEOUT_S: Final = 10.0

Outcome = Literal["ok", "denied", "credentials", "unreachable", "error"]


class Attempt(msgspec.Struct, frozen=True):
    """What one call came to."""

    outcome: Outcome
    """`credentials`: AWS does not accept who is calling. `error`: any other error that AWS answered
    with, such as a condition that was not met."""
    code: str = ""
    """AWS's code of the error."""
    message: str = ""
    reply: dict[str, Any] = {}
    server_time: datetime | None = None
    """The `Date` of the answer, in whole seconds."""

    @property
    def permitted(self) -> bool:
        """Whether AWS got as far as carrying it out: rights are checked before conditions."""
        return self.outcome in {"ok", "error"}


async def attempt(client: Any, operation: str, **parameters: Any) -> Attempt:
    """Makes one call, within 10 s; never raises for what AWS or the network did."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reply = await getattr(client, operation)(**parameters)
    except ClientError as error:
        code = code_of(error)
        outcome: Outcome = "error"
        if code in DENIED:
            outcome = "denied"
        elif code in UNACCEPTED:
            outcome = "credentials"
        return Attempt(outcome, code, message_of(error), server_time=_time_of(error.response))
    except TimeoutError:
        return Attempt("unreachable", message=f"no answer within {_TIMEOUT_S:g} s")
    except ResponseParserError:  # of what is no such service of AWS, an emulator's for one
        return Attempt("unreachable", message="the answer is not one of this service")
    except BotoCoreError as error:
        missing = "Credential" in type(error).__name__
        message = " ".join(str(error).split())
        return Attempt("credentials" if missing else "unreachable", message=message)
    return Attempt("ok", reply=reply, server_time=_time_of(reply))


def _time_of(reply: Any) -> datetime | None:
    headers = reply.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    try:
        return parsedate_to_datetime(headers["date"])
    except (KeyError, ValueError, TypeError):
        return None
