"""Bounds the connections of a listener, and chooses the one to close for a new one.

A process has a limited number of open files, and each connection takes one: silent clients could take all of them.
At the cap the listener closes the connection that has been idle for longest, as nginx does, and accepts the new
one. It never closes a busy connection for that. It refuses requests before busy connections could take the whole
cap, so a health check always gets in.
"""

import ipaddress
import logging
import resource
from collections import Counter, OrderedDict
from collections.abc import Callable

log = logging.getLogger(__name__)

FILES_RESERVED = 256
"""Open files besides clients' connections: Kafka, SQLite, uploads to the store, logs."""
FILES_PER_CONNECTION = 2
"""The connection, and the file of the store that it reads."""
IDLE_MIN = 16
"""Connections reserved for health checks and for answers of 503."""


class Connection:
    """One connection of a listener: the client's address, without its port, and `close`, which ends it at once."""

    __slots__ = ("address", "close")

    def __init__(self, address: str, close: Callable[[], object] = lambda: None) -> None:
        self.address = address
        self.close = close


class ConnectionTable:
    """The connections of a listener: idle ones, in the order in which they became idle, and busy ones.

    The cap of one address is half of `connections_max` for None, and 0 for none. `evicted` is called for each
    connection that the table closes for a new one.
    """

    def __init__(
        self, connections_max: int, per_address_max: int | None = 0, evicted: Callable[[], None] = lambda: None
    ) -> None:
        self._max = max(connections_max, 2 * IDLE_MIN)
        self._address_max = self._max // 2 if per_address_max is None else per_address_max or self._max
        self._evicted = evicted
        self._all: set[Connection] = set()
        self._idle: OrderedDict[Connection, None] = OrderedDict()
        self._addresses: Counter[str] = Counter()

    @property
    def counts(self) -> dict[str, float]:
        """The numbers of idle and of busy connections."""
        return {"waiting": len(self._idle), "working": len(self._all) - len(self._idle)}

    def add(self, connection: Connection) -> bool:
        """Add a new connection, which is idle; False if no other can be closed for it: the caller closes it."""
        if self._addresses[connection.address] >= self._address_max:
            fits = self._evict(next((c for c in self._idle if c.address == connection.address), None))
        else:
            fits = len(self._all) < self._max or self.evict()
        if fits:
            self._all.add(connection)
            self._idle[connection] = None
            self._addresses[connection.address] += 1
        return fits

    def evict(self) -> bool:
        """Close the connection that has been idle for longest; False if none is idle."""
        return self._evict(next(iter(self._idle), None))

    def set_busy(self, connection: Connection, *, is_exempt: bool = False) -> bool:
        """Protect a connection from eviction during a request; False if too many are busy: answer with 503.

        An exempt request gets an answer even then.
        """
        self._idle.pop(connection, None)
        return is_exempt or len(self._all) - len(self._idle) <= self._max - IDLE_MIN

    def set_idle(self, connection: Connection) -> None:
        """Mark a connection as idle after its request."""
        if connection in self._all:
            self._idle[connection] = None

    def remove(self, connection: Connection) -> None:
        """Remove a closed connection; a second call has no effect."""
        if connection not in self._all:
            return
        self._all.remove(connection)
        self._idle.pop(connection, None)
        self._addresses[connection.address] -= 1
        if not self._addresses[connection.address]:
            del self._addresses[connection.address]

    def _evict(self, connection: Connection | None) -> bool:
        if connection is None:
            return False
        self.remove(connection)
        self._evicted()
        connection.close()
        return True


def address_key(address: str) -> str:
    """The key that connections are counted by: for IPv6 the /64 network, since one client may use all of it."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return address
    return str(ip.ipv4_mapped or ipaddress.IPv6Network((int(ip) >> 64 << 64, 64)))


def raise_file_limit(connections_max: int) -> int:
    """Raise the process's limit of open files for these connections, as far as the system allows.

    Returns:
        The number of connections that the limit suffices for, at most `connections_max`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES_PER_CONNECTION * connections_max + FILES_RESERVED
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return connections_max
    # With a low limit, at most half of the files are reserved.
    left = max(soft - FILES_RESERVED, soft // 2)
    found = max(2 * IDLE_MIN, left // FILES_PER_CONNECTION)
    log.warning(
        "%d open files allow %d connections, not %d: raise the limit (ulimit -n)", soft, found, connections_max
    )
    return found
