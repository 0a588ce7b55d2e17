"""All pages of a Query or Scan."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from core.dynamo.wire import Item

Call = Callable[..., Awaitable[dict[str, Any]]]
"""`Dynamo.call`, or a function that retries it."""


async def paginate(
    call: Call,
    operation: str,
    *,
    gate: AbstractAsyncContextManager[Any] | None = None,
    **parameters: Any,
) -> AsyncGenerator[list[Item], None]:
    """The items of each page, until DynamoDB has no further one. A page may be empty.

    The gate, such as a semaphore, is entered for each request.
    """
    gate = gate or nullcontext()
    while True:
        async with gate:
            reply = await call(operation, **parameters)
        yield reply["Items"]
        if "LastEvaluatedKey" not in reply:
            return
        parameters["ExclusiveStartKey"] = reply["LastEvaluatedKey"]
