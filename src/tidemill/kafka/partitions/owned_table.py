"""A partition's table in which each row carries the number of the owner who wrote it.

A process that has lost its partition may not know yet, and what it sent may arrive much later. With its number in
the keys, nothing that it writes replaces a row of its successor, neither here nor when the log compacts the
changelog; a reader takes the row of the latest owner (docs/decisions/0037). Numbers follow the order in which the
broker assigned the partition: the generation of the consumer group.

| key | value |
|---|---|
| name, `/`, owner | a row |
| `owner/`, owner | empty: this owner has taken over |
"""

from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

ERA_BITS: Final = 32
"""The lower half of an owner's number is the generation; the upper grows when a group starts counting anew."""
_OWNER: Final = b"owner/"


class Table(Protocol):
    """One partition's share of a table; a write belongs to the event that is being handled."""

    def get(self, key: bytes) -> bytes | None:
        """The value of a key."""
        ...

    def put(self, key: bytes, value: bytes) -> None:
        """Set the value of a key."""
        ...

    def delete(self, key: bytes) -> None:
        """Delete a key, if it is there."""
        ...

    def scan(self, prefix: bytes, *, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Keys with a prefix and their values, in order; the caller must not write before the scan ends.

        Args:
            prefix: What the keys begin with.
            after: Where to start: at this key or behind it.
        """
        ...

    async def delivered(self) -> None:
        """Wait until the changelog has every write made so far."""
        ...


class Row(NamedTuple):
    """A row of some owner."""

    owner: bytes
    prefix: bytes
    value: bytes


class OwnedTable:
    """The rows of all owners of a partition, as its present owner reads and writes them."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.owner = 0
        """The number of this owner, above that of each owner before it; 0 before the take-over."""

    async def take_over(self, generation: int) -> None:
        """Become the owner, before anything else is read or written.

        Args:
            generation: Of the group, when the partition was assigned.
        """
        before = [key for key, _ in self.table.scan(_OWNER)]
        latest = max((int(key.removeprefix(_OWNER), 16) for key in before), default=0)
        era, known = divmod(latest, 1 << ERA_BITS)
        self.owner = ((era + (generation <= known)) << ERA_BITS) + generation
        self.table.put(_OWNER + self.suffix, b"")
        await self.table.delivered()
        for key in before:
            self.table.delete(key)

    @property
    def suffix(self) -> bytes:
        """This owner's number as it stands in keys."""
        return b"%016x" % self.owner

    def key(self, name: bytes) -> bytes:
        """The key of this owner's row of a name."""
        return b"%b/%b" % (name, self.suffix)

    def latest(self, name: bytes, *prefixes: bytes) -> Row | None:
        """The row of the latest owner; of two rows of one owner the one whose prefix comes last."""
        rows = [
            Row(owner_of(key), prefix, value)
            for prefix in prefixes or (b"",)
            for key, value in self.table.scan(b"%b%b/" % (prefix, name))
        ]
        return max(reversed(rows), key=lambda row: row.owner, default=None)


def owner_of(key: bytes) -> bytes:
    """The owner in a key."""
    return key.rpartition(b"/")[2]
