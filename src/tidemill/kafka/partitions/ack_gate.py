"""The ack gate: work may finish in any order, its records are acknowledged in theirs.

A commit on a log is one offset: everything before it is done. Faust 0.15.3 commits past unfinished work when
events are acknowledged out of order, so they never are: whoever works on records of a partition in parallel
acknowledges from the head of this gate only.
"""

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Ticket(Generic[T]):
    """The place of one record in its gate."""

    __slots__ = ("done", "item")

    def __init__(self, item: T) -> None:
        self.item = item
        self.done = False


class AckGate(Generic[T]):
    """The records of one partition that are under way, in the order of their offsets."""

    def __init__(self) -> None:
        self._tickets: deque[Ticket[T]] = deque()

    def __len__(self) -> int:
        return len(self._tickets)

    def admit(self, item: T) -> Ticket[T]:
        """Take in the next record of the partition."""
        ticket = Ticket(item)
        self._tickets.append(ticket)
        return ticket

    @property
    def head(self) -> T | None:
        """The oldest record that is under way."""
        return self._tickets[0].item if self._tickets else None

    def finish(self, ticket: Ticket[T]) -> Iterator[T]:
        """Say that a record's work is done, and take out what may be acknowledged now, in order."""
        ticket.done = True
        while self._tickets and self._tickets[0].done:
            yield self._tickets.popleft().item
