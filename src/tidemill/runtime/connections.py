"""How many connections a listener holds, and which one gives way to a new one.

A process has so many files, and each connection takes one: clients that say nothing could take them all. So a
listener has a cap, and at the cap it closes the connection that has waited longest for a request, as nginx does,
and takes the new one. It closes none at work for that; it refuses requests before connections at work could take
the whole cap, so a health check always gets in.
"""

import ipaddress
import logging
import resource
from collections import Counter, OrderedDict
from collections.abc import Callable

log = logging.getLogger(__name__)

FILES_RESERVED = 256
"""Open files of a process that are not clients' connections: Kafka, SQLite, the store's uploads, logs."""
FILES_PER_CONNECTION = 2
"""A connection, and the file of the store that is read for it."""
WAITING_MIN = 16
"""Connections of the cap that are kept free of work, for health checks and for telling others to come again."""


class Connection:
    """One connection, in the eyes of its listener.

    Attributes:
        address: The client's address, without its port.
        drop: Closes the connection at once; it waits for nothing.
    """

    __slots__ = ("address", "drop")

    def __init__(self, address: str, drop: Callable[[], object] = lambda: None) -> None:
        self.address = address
        self.drop = drop


class Room:
    """The connections of a listener: those that wait for a request, the longest first, and those at work.

    Args:
        connections_max: How many there may be.
        per_address_max: How many of one address; None is half of them, 0 as many as there may be at all.
        dropped: Is told of each connection that had to go to make room.
    """

    def __init__(
        self, connections_max: int, per_address_max: int | None = 0, dropped: Callable[[], None] = lambda: None
    ) -> None:
        self._max = max(connections_max, 2 * WAITING_MIN)
        self._address_max = self._max // 2 if per_address_max is None else per_address_max or self._max
        self._dropped = dropped
        self._all: set[Connection] = set()
        self._waiting: OrderedDict[Connection, None] = OrderedDict()
        self._addresses: Counter[str] = Counter()

    @property
    def counts(self) -> dict[str, float]:
        """How many wait, and how many are at work."""
        return {"waiting": len(self._waiting), "working": len(self._all) - len(self._waiting)}

    def enter(self, connection: Connection) -> bool:
        """Let a new connection wait for a request; False: it is to be closed, nobody could make room for it."""
        if self._addresses[connection.address] >= self._address_max:
            made = self._drop(next((c for c in self._waiting if c.address == connection.address), None))
        else:
            made = len(self._all) < self._max or self.make()
        if made:
            self._all.add(connection)
            self._waiting[connection] = None
            self._addresses[connection.address] += 1
        return made

    def make(self) -> bool:
        """Close the connection that has waited longest; False where none waits."""
        return self._drop(next(iter(self._waiting), None))

    def work(self, connection: Connection, *, at_any_rate: bool = False) -> bool:
        """Take note that a request is answered; False: too many are, and this one may only be told so.

        Args:
            connection: It is not closed for others until it waits again.
            at_any_rate: The request is answered also where too many are.
        """
        self._waiting.pop(connection, None)
        return at_any_rate or len(self._all) - len(self._waiting) <= self._max - WAITING_MIN

    def wait(self, connection: Connection) -> None:
        """Take note that a request has been answered."""
        if connection in self._all:
            self._waiting[connection] = None

    def leave(self, connection: Connection) -> None:
        """Take note that a connection is closed; a second time does nothing."""
        if connection not in self._all:
            return
        self._all.remove(connection)
        self._waiting.pop(connection, None)
        self._addresses[connection.address] -= 1
        if not self._addresses[connection.address]:
            del self._addresses[connection.address]

    def _drop(self, connection: Connection | None) -> bool:
        if connection is None:
            return False
        self.leave(connection)
        self._dropped()
        connection.drop()
        return True


def group(address: str) -> str:
    """The address by which connections are counted: of IPv6 the network, since a client has all of one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return address
    return str(ip.ipv4_mapped or ipaddress.IPv6Network((int(ip) >> 64 << 64, 64)))


def fitting(connections_max: int) -> int:
    """Raise the process's limit of open files as far as these connections need it and the system lets it.

    Returns:
        How many connections the files suffice for, at most `connections_max`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES_PER_CONNECTION * connections_max + FILES_RESERVED
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return connections_max
    # Of few files a part is reserved all the same, and the rest is for connections.
    left = max(soft - FILES_RESERVED, soft // 2)
    found = max(2 * WAITING_MIN, left // FILES_PER_CONNECTION)
    log.warning(
        "%d open files allow %d connections, not %d: raise the limit (ulimit -n)", soft, found, connections_max
    )
    return found
