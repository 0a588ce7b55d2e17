"""Requests at a rate that replies do not change, from a process of its own.

    python -m tests.load.open_loop PORT FILE --rate 8000 [--seconds 5] [--connections 256]

The requests of the file (as `tests.benchmarks.sent.write_script` writes it) are sent in order, at
moments drawn beforehand from a Poisson process, each on the connection that has been idle for
longest. One that finds no idle connection is sent on the next to become so. Latencies count from
the drawn moment. Prints an `Outcome` as JSON.
"""

import argparse
import select
import socket
from collections import Counter, deque
from pathlib import Path
from time import perf_counter, sleep
from typing import Final

import msgspec
import numpy as np

_SETTLE_S: Final = 1.0
"""How long is waited at the end for replies that are still due."""
_WARM_UP_S: Final = 1.0
"""At the beginning, of which nothing is counted."""
_LOOK_S: Final = 50e-6
"""How long it sleeps; the system makes it about 0.1 ms."""
_READ_BYTES: Final = 65536
_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length: "
_OK: Final = 200
_FULL: Final = 503
_NEEDED: Final = (b"retry-after: ", b"x-request-id: ", b"application/problem+json")


class Outcome(msgspec.Struct, frozen=True):
    """What came in the measured time, and of all requests whatever went wrong."""

    seconds: float
    accepted: int
    """Answered with 200."""
    answered: int
    """The same, before and after the measured time too."""
    refused: int
    """Answered with 503, by a problem that says when to try again."""
    wrong: dict[str, int]
    """Whatever else happened."""
    accepted_ms: tuple[float, float, float]
    """p50, p90 and p99 of them."""
    refused_ms: tuple[float, float, float]
    late_ms: float
    """p99 from the moment when a request was due to its being sent."""


class Connection:
    """One connection, with one request at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.received = b""
        self.due: float | None = None
        """When the request in flight was to be sent."""

    def reply(self) -> bytes | None:
        """A whole reply, once it has come.

        Raises:
            ConnectionError: the server has closed the connection.
        """
        data = self.socket.recv(_READ_BYTES)
        if not data:
            raise ConnectionResetError("closed")
        received = self.received = self.received + data
        end = received.find(_END)
        at = received.find(_LENGTH, 0, end)
        if at < 0 or len(received) < end + 4 + int(received[at + 16 : received.index(b"\r", at)]):
            return None
        self.received = b""
        return received


class Generator:
    """Sends what is due, and notes what comes of it."""

    def __init__(self, port: int, requests: list[bytes], due: list[float]) -> None:
        self._port = port
        self._requests = requests
        self._due = due
        self._next = 0
        self._began = 0.0
        self._poll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._idle: deque[Connection] = deque()
        self.times: dict[int, list[float]] = {_OK: [], _FULL: []}
        self.late: list[float] = []
        self.answered = 0
        self.wrong: Counter[str] = Counter()

    def run(self, connections: int) -> None:
        """Sends everything, and waits a little for the last replies.

        It sleeps between any two looks at what is due and what has come: one that spins would take
        from the server what the two cores share. The loop of asyncio counts in milliseconds.
        """
        for _ in range(connections):
            self._open()
        self._began = perf_counter()
        end = self._due[-1] + _SETTLE_S
        while (now := perf_counter() - self._began) < end:
            for number, _ in self._poll.poll(0):
                self._read(self._connections[number])
            self._send(now)
            if self._next == len(self._due) and len(self._idle) == connections:
                break
            sleep(_LOOK_S)
        unanswered = len(self._due) - self._next + connections - len(self._idle)
        self.wrong["without a reply"] += unanswered

    def _open(self) -> None:
        connection = Connection(self._port)
        self._connections[connection.socket.fileno()] = connection
        self._poll.register(connection.socket, select.EPOLLIN)
        self._idle.append(connection)

    def _send(self, now: float) -> None:
        while self._next < len(self._due) and self._due[self._next] <= now and self._idle:
            connection = self._idle.popleft()
            connection.due = due = self._due[self._next]
            request = self._requests[self._next % len(self._requests)]
            self._next += 1
            if due >= _WARM_UP_S:
                self.late.append(now - due)
            if connection.socket.send(request) != len(request):
                raise SystemExit("the server does not read what it is sent")

    def _read(self, connection: Connection) -> None:
        try:
            reply = connection.reply()
        except ConnectionError:
            self.wrong["closed" if connection.due is None else "closed before a reply"] += 1
            if connection.due is None:
                self._idle.remove(connection)
            del self._connections[connection.socket.fileno()]
            connection.socket.close()
            self._open()
            return
        if reply is not None:
            self._note(connection.due, reply)
            connection.due = None
            self._idle.append(connection)

    def _note(self, due: float | None, reply: bytes) -> None:
        now = perf_counter() - self._began
        status = int(reply[9:12])
        self.answered += status == _OK
        if due is None:
            self.wrong["reply without a request"] += 1
        elif _WARM_UP_S <= now <= self._due[-1]:
            if status not in self.times:
                self.wrong[str(status)] += 1
            elif status == _FULL and not all(each in reply for each in _NEEDED):
                self.wrong["503 that is no problem"] += 1
            else:
                self.times[status].append(now - due)


def main(plan: argparse.Namespace) -> None:
    """Sends, and prints."""
    requests = _read(plan.file)
    count = round(plan.rate * (_WARM_UP_S + plan.seconds))
    pauses = np.random.default_rng(plan.seed).exponential(1 / plan.rate, count)
    generator = Generator(plan.port, requests, np.cumsum(pauses).tolist())
    generator.run(plan.connections)
    accepted, refused = generator.times[_OK], generator.times[_FULL]
    done = Outcome(
        seconds=float(pauses.sum()) - _WARM_UP_S,
        accepted=len(accepted),
        answered=generator.answered,
        refused=len(refused),
        wrong=dict(generator.wrong),
        accepted_ms=_percentiles_ms(accepted),
        refused_ms=_percentiles_ms(refused),
        late_ms=_percentiles_ms(generator.late)[2],
    )
    print(msgspec.json.encode(done).decode(), flush=True)


def _percentiles_ms(times: list[float]) -> tuple[float, float, float]:
    p50, p90, p99 = np.percentile(times or [0.0], [50, 90, 99]) * 1000
    return float(p50), float(p90), float(p99)


def _read(file: Path) -> list[bytes]:
    requests = []
    data = file.read_bytes()
    at = 0
    while at < len(data):
        end = at + 8 + int(data[at : at + 8], 16)
        requests.append(data[at + 8 : end])
        at = end
    return requests


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("port", type=int)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    main(parser.parse_args())
