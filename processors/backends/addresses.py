"""Follows the addresses that a server's host name resolves to, like the pods of a headless service of Kubernetes.

An answer replaces the addresses; one that is missing has gone. While lookups fail, the addresses stay: calls show
by themselves which of them answer. An empty answer counts only once it has lasted, since the name of a service
has no address for a moment while all its pods are replaced.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from tidemill.schemas.ports import Monotonic

LOOKUP_SECONDS: Final = 3.0
"""Between two lookups."""
ANSWER_SECONDS_MAX: Final = 5.0
"""A later answer counts as a failure."""
EMPTY_SECONDS: Final = 30.0
"""How long empty answers change nothing."""
ADDRESSES_MAX: Final = 64

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host name; the port is for the system's resolver. Raises `OSError` if there is no answer."""

_EMPTY: Final = frozenset({socket.EAI_NONAME, socket.EAI_NODATA})
_log = logging.getLogger(__name__)


async def system_lookup(host: str, port: int) -> list[str]:
    """The IPv4 addresses of a host, else its IPv6 addresses: one family is enough."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in _EMPTY:
            return []
        raise
    by_family = [
        [str(place[0]) for family, *_, place in found if family is wanted]
        for wanted in (socket.AF_INET, socket.AF_INET6)
    ]
    # An address with a scope is valid on one machine only.
    return by_family[0] or [address for address in by_family[1] if "%" not in address]


class Addresses:
    """The addresses of one host name."""

    def __init__(
        self, name: str, place: tuple[str, int], lookup: Lookup, changed: Callable[[], None], monotonic: Monotonic
    ) -> None:
        """Start without addresses.

        Args:
            name: The server's name, for the log.
            place: Host name and port.
            lookup: Asks the resolver.
            changed: Called when the addresses have changed.
            monotonic: A monotonic clock.
        """
        self.place = place
        self.present: tuple[str, ...] = ()
        """The addresses, at most `ADDRESSES_MAX`."""
        self._name = name
        self._lookup = lookup
        self._changed = changed
        self._monotonic = monotonic
        self._answered_at = monotonic()
        """When an answer last had an address, or none was expected."""
        self._asking: asyncio.Future[Sequence[str]] | None = None
        self._warned = ""

    async def run(self) -> None:
        """Look up the name until cancelled."""
        try:
            while True:
                try:
                    await self.look()
                except Exception:  # noqa: BLE001  the next answer may be usable
                    _log.exception("server %s: the addresses of %s cannot be used", self._name, self.place[0])
                await asyncio.sleep(LOOKUP_SECONDS)
        finally:
            if self._asking is not None:
                self._asking.cancel()

    async def look(self) -> None:
        """Look up the name once; never more than one lookup at a time, however long it takes."""
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._lookup(*self.place))
        done, _ = await asyncio.wait([self._asking], timeout=ANSWER_SECONDS_MAX)
        if not done:
            self._warn("has no answer of the resolver")
            return
        asking, self._asking = self._asking, None
        if (error := asking.exception()) is not None:
            self._warn(f"cannot be resolved: {error}")
            return
        found = dict.fromkeys(asking.result())
        now = self._monotonic()
        if found:
            self._answered_at = now
            self._set(found)
        elif now >= self._answered_at + EMPTY_SECONDS:
            self._warn("resolves to no address")
            self._set(found)

    def _set(self, found: dict[str, None]) -> None:
        known = [address for address in self.present if address in found]
        new = sorted(found.keys() - set(known))
        if len(found) > ADDRESSES_MAX:
            self._warn(f"resolves to {len(found)} addresses; {ADDRESSES_MAX} of them are called")
        elif found:
            self._warned = ""
        present = tuple([*known, *new][:ADDRESSES_MAX])
        if present != self.present:
            self.present = present
            _log.info("server %s has %d addresses: %s", self._name, len(present), ", ".join(present))
            self._changed()

    def _warn(self, text: str) -> None:
        """Log a message, once as long as it stays true."""
        if text != self._warned:
            self._warned = text
            _log.warning("server %s: %s %s", self._name, self.place[0], text)
