"""Open connections: how many in all, how many an address, and which end for want of progress.

Connections that wait for a request give way to new ones: first those that never sent one, then
those that sent none for longest. One with a request in progress is never ended for another.
"""

import asyncio
import resource
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import islice
from typing import Final, Literal, Protocol

from api import metrics
from core.errors import SettingsError
from core.settings import Http

Cause = Literal["header", "idle", "write", "unread", "closing", "replaced", "address", "all"]
"""Why a connection ended, as the metric names it."""
Network = IPv4Network | IPv6Network

_SWEEP_S: Final = 1.0
_ENDED_AT_ONCE: Final = 32
"""Connections that one sweep ends: thousands, opened at once, would hold up the event loop."""
_SWEEP_ON_S: Final = 0.005
"""How soon the next sweep ends the rest."""
_LINGER_S: Final = 3.0
"""How long a client may take to close a connection that is closed on this side."""
_READ_BYTES_PER_S_MIN: Final = 4096
"""A reply that is read more slowly than this is not waited for."""
RESERVED_FILES: Final = 256
"""Of the process's open files: for DynamoDB, S3, Redis, index files."""
_IPV6_PREFIX: Final = 64
"""One customer's network: counting single addresses of it would limit nobody."""


class Connection(Protocol):
    """What the table needs of a connection."""

    group: "Group"

    @property
    def unread_bytes(self) -> int:
        """Bytes of replies that the client has not taken."""
        ...

    def end(self, cause: Cause) -> None:
        """Ends it at once, whatever is in flight."""
        ...


class Group:
    """The connections of one address, or all of them."""

    __slots__ = ("address", "count", "fresh", "idle")

    def __init__(self, address: str | None = None) -> None:
        self.address = address
        self.count = 0
        self.fresh: dict[Connection, float] = {}
        """Those whose header is awaited: since when, oldest first."""
        self.idle: dict[Connection, float] = {}
        """Those that were answered, and have not begun another request."""

    def longest_waiting(self) -> Connection | None:
        """The one that gives way to a new connection."""
        return next(iter(self.fresh), None) or next(iter(self.idle), None)


class ConnectionTable:
    """All connections of one listener."""

    def __init__(self, http: Http) -> None:
        """Takes the limits from settings.

        Raises:
            SettingsError: a trusted proxy is no network.
        """
        self._http = http
        self._trusted = trusted_networks(http)
        self.connections_max = min(http.connections_max, open_files_max())
        self.draining = False
        """No connection is kept open after its reply."""
        self.all = Group()
        self._groups: dict[str, Group] = {}
        self._requests: dict[str, int] = {}
        """Requests in progress by client address, of clients behind trusted proxies."""
        self._closing: dict[Connection, float] = {}
        self._stalled: dict[Connection, tuple[float, int]] = {}
        """Those with much unread: since when, and how many bytes then."""
        self._unread_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    # --- opening and closing ----------------------------------------------------------------------

    def admit(self, connection: Connection, peer: str) -> Cause | None:
        """Counts a new connection, which others may give way to; or says why it is refused."""
        if self.trusts(peer):
            group = Group()  # of its own: a proxy carries the connections of many clients
        else:
            address = address_group(peer)
            group = self._groups.get(address) or self._groups.setdefault(address, Group(address))
        connection.group = group
        if group.address is not None and not self._room(
            group, self._http.connections_per_address_max
        ):
            return "address"
        if not self._room(self.all, self.connections_max):
            self._forget_if_empty(group)
            return "all"
        group.count += 1
        self.all.count += 1
        self._wait(connection)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)
        return None

    def leave(self, connection: Connection) -> None:
        """Forgets a connection that was admitted and is closed."""
        group = connection.group
        group.count -= 1
        self.all.count -= 1
        self.begin(connection)
        self._closing.pop(connection, None)
        self.reads(connection)
        self._forget_if_empty(group)

    def _room(self, group: Group, limit: int) -> bool:
        """Whether there is room in a group, made by ending one that waits where there is none."""
        if group.count < limit:
            return True
        oldest = group.longest_waiting()
        if oldest is None:
            return False
        oldest.end("replaced")
        return True

    def _forget_if_empty(self, group: Group) -> None:
        if group.address is not None and group.count == 0:
            self._groups.pop(group.address, None)

    # --- what a connection does -------------------------------------------------------------------

    def begin(self, connection: Connection) -> None:
        """A whole header has come: a request is in progress."""
        for group in (self.all, connection.group):
            group.fresh.pop(connection, None)
            group.idle.pop(connection, None)

    def rest(self, connection: Connection) -> None:
        """All its requests were answered."""
        moment = asyncio.get_running_loop().time()
        self.all.idle[connection] = connection.group.idle[connection] = moment

    def reads_header(self, connection: Connection) -> None:
        """The first bytes of another header have come."""
        if connection in self.all.idle:
            self.begin(connection)
            self._wait(connection)

    def close(self, connection: Connection) -> None:
        """It is closed on this side; the client has some time to take what it was sent."""
        self.begin(connection)
        self._closing.setdefault(connection, asyncio.get_running_loop().time())

    def stalls(self, connection: Connection) -> None:
        """The client does not read as fast as it is sent to."""
        unread = connection.unread_bytes
        self._stalled[connection] = asyncio.get_running_loop().time(), unread
        self._unread_bytes += unread
        while self._unread_bytes > self._http.unread_bytes_max and len(self._stalled) > 1:
            next(iter(self._stalled)).end("unread")

    def reads(self, connection: Connection) -> None:
        """It has read most of it."""
        _, unread = self._stalled.pop(connection, (0.0, 0))
        self._unread_bytes -= unread

    def _wait(self, connection: Connection) -> None:
        moment = asyncio.get_running_loop().time()
        self.all.fresh[connection] = connection.group.fresh[connection] = moment

    # --- clients behind proxies -------------------------------------------------------------------

    def trusts(self, peer: str) -> bool:
        """Whether what this peer says of its client's address is believed."""
        return bool(self._trusted) and _within(peer, self._trusted)

    def client_of(self, peer: str, forwarded: list[bytes]) -> str:
        """The address of a trusted proxy's client: the last one that no trusted proxy has.

        Args:
            peer: The proxy.
            forwarded: Values of X-Forwarded-For, in order.
        """
        for hop in reversed(b",".join(forwarded).decode("latin-1").split(",")):
            address = _without_port(hop.strip())
            if not _readable(address):
                return peer
            if not _within(address, self._trusted):
                return address
        return peer

    def begin_request(self, client: str) -> bool:
        """Counts a request of a client behind a proxy; False when it is over its share."""
        address = address_group(client)
        count = self._requests.get(address, 0)
        if count >= self._http.connections_per_address_max:
            metrics.CONNECTIONS_ENDED.labels("address").inc()
            return False
        self._requests[address] = count + 1
        return True

    def end_request(self, client: str) -> None:
        """A request that was counted is done."""
        address = address_group(client)
        self._requests[address] -= 1
        if not self._requests[address]:
            del self._requests[address]

    # --- time -------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ends nothing any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        moment = loop.time()
        more = self._end_since(self.all.fresh, moment - self._http.header_timeout_s, "header")
        more |= self._end_since(self.all.idle, moment - self._http.idle_timeout_s, "idle")
        for connection, (since, before) in list(self._stalled.items()):
            if moment - since < self._http.write_timeout_s:
                continue
            unread = connection.unread_bytes
            if before - unread < _READ_BYTES_PER_S_MIN * (moment - since):
                connection.end("write")
            else:
                self._stalled[connection] = moment, unread
                self._unread_bytes += unread - before
        for connection, since in list(self._closing.items()):
            wait_s = self._http.write_timeout_s if connection.unread_bytes else _LINGER_S
            if moment - since >= wait_s and connection not in self._stalled:
                connection.end("closing")
        pause_s = _SWEEP_ON_S if more else _SWEEP_S
        self._timer = loop.call_later(pause_s, self._sweep) if self.all.count else None

    def _end_since(self, waiting: dict[Connection, float], until: float, cause: Cause) -> bool:
        """Ends those that have waited for too long; True if some are left for the next sweep."""
        for connection, since in list(islice(waiting.items(), _ENDED_AT_ONCE)):
            if since > until:
                return False
            connection.end(cause)
        return len(waiting) > 0


def trusted_networks(http: Http) -> tuple[Network, ...]:
    """The networks of the proxies whose X-Forwarded-For is believed.

    Raises:
        SettingsError: one is no network.
    """
    try:
        return tuple(ip_network(text) for text in http.trusted_proxies)
    except ValueError as error:
        raise SettingsError(f"K9_TRUSTED_PROXIES: {error}") from None


@lru_cache(4096)
def address_group(peer: str) -> str:
    """What is counted as one client: an IPv4 address, or a /64 of IPv6."""
    if ":" not in peer:
        return peer
    address = IPv6Address(peer.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Network((int(address), _IPV6_PREFIX), strict=False))


@lru_cache(4096)
def _within(peer: str, networks: tuple[Network, ...]) -> bool:
    if not _readable(peer):
        return False
    address = ip_address(peer)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return any((mapped or address) in network for network in networks)


def _without_port(hop: str) -> str:
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


def _readable(address: str) -> bool:
    try:
        ip_address(address)
    except ValueError:
        return False
    return True


def open_files_max() -> int:
    """How many connections the process may have open, of the files that the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError):  # the system has a limit of its own, as macOS does
            soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return 1 << 30
    return max(64, soft - RESERVED_FILES)
