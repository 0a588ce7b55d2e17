"""What the server keeps of a request once it is answered."""

import gc
from typing import Any, cast

from api.http.context import WHOLE_BODY, RequestContext, context_of
from api.server.cycle import Cycle


def received(body: bytes) -> tuple[Cycle, dict[str, Any]]:
    """A request whose body has come whole, and its scope."""
    scope: dict[str, Any] = {
        "method": "POST",
        "path": "/",
        "query_string": b"",
        "headers": [(b"content-length", str(len(body)).encode())],
    }
    connection: Any = None
    cycle = Cycle(connection, scope, keep_alive=True, _waiting_for_continue=False)
    cycle.body += body
    cycle.more_body = False
    return cycle, scope


def test_a_whole_body_is_given_once() -> None:
    """And is nothing to wait for; one of which more comes is not given."""
    cycle, scope = received(b"{}")
    assert scope[WHOLE_BODY]() == b"{}"
    assert scope[WHOLE_BODY]() == b""
    cycle, scope = received(b"{")
    cycle.more_body = True
    assert scope[WHOLE_BODY]() is None
    assert cycle.body == b"{"


def test_a_request_leaves_nothing_to_the_garbage_collector() -> None:
    """Collections are rare, and a body may have 96 MiB."""
    app: Any = None

    def request() -> None:
        cycle, scope = received(b"{}")
        typed, receive = cast("Any", scope), cast("Any", cycle.receive)
        context = context_of(typed, receive, app)
        assert context.whole_body() == b"{}"

    gc.collect()
    gc.disable()
    try:
        request()
        left = [each for each in gc.get_objects() if isinstance(each, (Cycle, RequestContext))]
    finally:
        gc.enable()
    assert left == []
