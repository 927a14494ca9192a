"""The ack gate: acknowledges the records of a partition in order, though their work finishes in any order.

A committed offset means that all records before it are done. Faust 0.15.3 commits past unfinished records if
events are acknowledged out of order, so a stage that works on a partition's records in parallel acknowledges only
records that this gate releases.
"""

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Ticket(Generic[T]):
    """The position of a record in its gate."""

    __slots__ = ("done", "item")

    def __init__(self, item: T) -> None:
        self.item = item
        self.done = False


class AckGate(Generic[T]):
    """The unacknowledged records of one partition, in the order of their offsets."""

    def __init__(self) -> None:
        self._tickets: deque[Ticket[T]] = deque()

    def __len__(self) -> int:
        return len(self._tickets)

    def admit(self, item: T) -> Ticket[T]:
        """Add the next record of the partition."""
        ticket = Ticket(item)
        self._tickets.append(ticket)
        return ticket

    @property
    def head(self) -> T | None:
        """The oldest unacknowledged record."""
        return self._tickets[0].item if self._tickets else None

    @property
    def unfinished(self) -> Iterator[T]:
        """The records that are not done, in order."""
        return (ticket.item for ticket in self._tickets if not ticket.done)

    def finish(self, ticket: Ticket[T]) -> Iterator[T]:
        """Mark a record as done; removes and yields the records that can be acknowledged now, in order."""
        ticket.done = True
        while self._tickets and self._tickets[0].done:
            yield self._tickets.popleft().item
