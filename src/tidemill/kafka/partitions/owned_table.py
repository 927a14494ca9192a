"""A partition's table whose keys contain the number of the owner that wrote the row.

A process may not know yet that it has lost its partition, and the broker may append its writes much later. With
the owner's number in the key, these writes never replace a row of the successor, neither in the table nor when the
broker compacts the changelog; readers use the row of the latest owner (docs/decisions/0037). The numbers increase
with the generations of the consumer group.

| key | value |
|---|---|
| name, `/`, owner | a row |
| `owner/`, owner | the latest owner that has adopted all rows of earlier ones; empty without one |
"""

from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

ERA_BITS: Final = 32
"""The lower bits of an owner's number are the generation; the upper ones grow when the generation restarts."""
_OWNER: Final = b"owner/"


class Table(Protocol):
    """One partition's share of a table."""

    def get(self, key: bytes) -> bytes | None:
        """The value of a key; None without one."""
        ...

    def put(self, key: bytes, value: bytes) -> None:
        """Set the value of a key."""
        ...

    def delete(self, key: bytes) -> None:
        """Delete a key, if it exists."""
        ...

    def scan(self, prefix: bytes, *, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Keys with a prefix and their values, in order, from `after` on; the caller must not write meanwhile."""
        ...

    async def delivered(self) -> None:
        """Wait until the changelog has all writes so far."""
        ...


class Row(NamedTuple):
    """A row and its owner."""

    owner: bytes
    prefix: bytes
    value: bytes


class OwnedTable:
    """A table with the rows of all owners, for its current owner."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.owner = 0
        """The number of this owner, greater than those of earlier owners; 0 before the take-over."""
        self.adopted = b""
        """The latest owner that has adopted all rows, as in keys: a row of an earlier one is obsolete.

        A local table that was not in use keeps such rows, since the broker also compacts away their deletions.
        """

    async def take_over(self, generation: int) -> None:
        """Become the owner by the group's generation at the assignment; call this before all other methods."""
        before = dict(self.table.scan(_OWNER))
        latest = max((int(key.removeprefix(_OWNER), 16) for key in before), default=0)
        self.adopted = max(before.values(), default=b"")
        era, known = divmod(latest, 1 << ERA_BITS)
        self.owner = ((era + (generation <= known)) << ERA_BITS) + generation
        self.table.put(_OWNER + self.suffix, self.adopted)
        await self.table.delivered()
        for key in before:
            self.table.delete(key)

    def finish_adoption(self) -> None:
        """Make all rows of earlier owners obsolete; call this once this owner has written all that it needs."""
        self.table.put(_OWNER + self.suffix, self.suffix)

    @property
    def suffix(self) -> bytes:
        """This owner's number, as in keys."""
        return b"%016x" % self.owner

    def key(self, name: bytes) -> bytes:
        """The key of this owner's row with a name."""
        return b"%b/%b" % (name, self.suffix)

    def latest(self, name: bytes, *prefixes: bytes) -> Row | None:
        """The row of the latest owner; of two rows of an owner, the one whose prefix is last in `prefixes`."""
        rows = [
            Row(owner_of(key), prefix, value)
            for prefix in prefixes or (b"",)
            for key, value in self.table.scan(b"%b%b/" % (prefix, name))
        ]
        return max(reversed(rows), key=lambda row: row.owner, default=None)


def owner_of(key: bytes) -> bytes:
    """The owner's number in a key."""
    return key.rpartition(b"/")[2]
