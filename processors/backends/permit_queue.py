"""Decides which model of a server makes the next call, where several models share the server.

A model whose call finds no room waits here. When a call ends, the server offers the room to the models that wait,
one turn after the other, by the rule of `scheduling/scheduler.py`: the project whose clock is the furthest behind
is next. If several models have lines of that project, one turn goes to the earliest deadline, and the next to the
model that has waited longest for a turn. As long as others wait, a model makes no call outside its turns; a server
with one model has no turns.

A model that cannot use its turn (its own limit is reached, or its lines are gone) leaves the queue, and waits
again when its next call finds no room. So each model wastes at most one turn.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

TURN_DIVISOR: Final = 4
"""A turn has at most 1/`TURN_DIVISOR` of the calls in flight, and at least one call."""


class NextLine(NamedTuple):
    """A model's next line."""

    clock: float
    """The time of its project (`clocks.py`), in calls divided by the weight."""
    project: str
    deadline: float
    """Unix time."""


@dataclass(slots=True, eq=False)
class Contender:
    """A model that calls the server."""

    next_line: Callable[[], NextLine | None]
    """Its next line; None if it has none to call."""
    start: Callable[[], bool]
    """Starts one call if one may start; returns whether it did."""
    turn: int = 0
    """The number of its last turn."""


class SharedServer(Protocol):
    """The server of a queue."""

    in_flight: int
    """Calls of all its models."""

    def has_room(self) -> bool:
        """Whether it takes another call now."""
        ...


class PermitQueue:
    """The models of one server, and those of them that wait for a call."""

    def __init__(self, server: SharedServer) -> None:
        """Start without contenders."""
        self._server = server
        self._contenders: list[Contender] = []
        self.waiting: dict[Contender, None] = {}
        """In the order in which they began to wait."""
        self._holder: Contender | None = None
        """The contender whose turn it is."""
        self._left = 0
        """Calls of this turn."""
        self._turns = 0
        self._by_deadline: dict[str, bool] = {}
        """By project, whether the last choice between models went by deadline."""
        self._handle: asyncio.Handle | None = None

    @property
    def is_shared(self) -> bool:
        """Whether it has several contenders."""
        return len(self._contenders) > 1

    def join(self, contender: Contender) -> None:
        """Add a contender."""
        self._contenders.append(contender)

    def leave(self, contender: Contender) -> None:
        """Remove a contender; its calls in flight may go on."""
        self._contenders.remove(contender)
        self.waiting.pop(contender, None)
        if contender is self._holder:
            self._holder = None
        self._offer_soon()

    def blocks(self, contender: Contender | None) -> bool:
        """Whether a contender must not call now, since others wait and it is not its turn."""
        if contender is None or (contender is self._holder and self._left > 0):
            return False
        return len(self.waiting) > 1 or contender not in self.waiting

    def wait(self, contender: Contender | None) -> None:
        """Queue a contender that found no room, or that is out of turn."""
        if self.is_shared and contender is not None:
            self.waiting[contender] = None
            if self._server.has_room():
                self._offer_soon()

    def started(self, contender: Contender | None) -> None:
        """A call of a contender begins."""
        if contender is self._holder:
            self._left -= 1

    def ended(self, contender: Contender | None) -> None:
        """A call of a contender has ended; a contender that waits alone looks for itself."""
        if len(self.waiting) > 1 or contender not in self.waiting:
            self._offer_soon()

    def changed(self) -> None:
        """The server may take more calls."""
        if self.is_shared:
            self._offer_soon()
        else:
            for contender in self._contenders:
                while contender.start():
                    pass

    def _offer_soon(self) -> None:
        # Once for all calls that end in this turn of the event loop.
        if self.waiting and self._handle is None:
            self._handle = asyncio.get_running_loop().call_soon(self._offer)

    def _offer(self) -> None:
        self._handle = None
        while self.waiting and self._server.has_room():
            if self._holder not in self.waiting or self._left <= 0:
                self._begin_turn()
            elif not self._holder.start():
                if not self._server.has_room():
                    return
                del self.waiting[self._holder]

    def _begin_turn(self) -> None:
        """Choose the next holder; remove contenders that have no line to call."""
        lines = {contender: contender.next_line() for contender in self.waiting}
        self.waiting = {contender: None for contender, line in lines.items() if line is not None}
        found = {contender: line for contender, line in lines.items() if line is not None}
        if not found:
            self._holder = None
            self._by_deadline.clear()
            return
        project = min(found.values()).project
        rivals = [contender for contender, line in found.items() if line.project == project]
        if len(rivals) > 1:
            self._by_deadline[project] = not self._by_deadline.get(project, False)
            if self._by_deadline[project]:
                rivals.sort(key=lambda contender: (found[contender].deadline, contender.turn))
            else:
                rivals.sort(key=lambda contender: contender.turn)
        self._turns += 1
        self._holder = rivals[0]
        self._holder.turn = self._turns
        self._left = max(1, self._server.in_flight // TURN_DIVISOR)
