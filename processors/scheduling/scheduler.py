"""Decides which line is called next.

Projects take turns by their weights (weighted fair queueing): each line advances the clock of its project by the
inverse of the weight, and the project with the earliest clock is next. A project that had no lines starts at the
time of the others, so it cannot save up turns. Models with common servers share the clocks: a server decides by
them which model is next (`backends/permit_queue.py`). Within a project every second turn goes to the batch with
the earliest deadline, the others to its batches in rotation. So an urgent batch gets at least half of its
project's calls.

A turn is a run of lines of one batch, so that their results share a record of the log; each `take` says how long
the run may be. A new batch has its first turn before the rotation continues; if many arrive, they get every second
turn of the rotation. So ten lines behind many batches of fifty thousand wait for two turns, and for the first
turns of batches that arrived just before.

Within a batch lines keep their order, or are grouped by prefix (`prefix_groups.py`). While calls fail, a line is
taken at random and ends the turn, so that good lines are found behind any number of bad ones.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace
from typing import Generic, TypeVar

from tidemill.processors.backends.clocks import TurnClock, TurnClocks
from tidemill.processors.scheduling.prefix_groups import PrefixBackend, Prefixes, PrefixGroups

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Batch(Generic[T]):
    id: str
    project: "_Project[T]"
    deadline: float
    lines: PrefixGroups[T]
    had_turn: bool = False
    in_heap: bool = False
    in_ring: bool = False


@dataclass(slots=True, eq=False)
class _Project(Generic[T]):
    """A project's batches in two orders; a batch without lines is removed when its turn comes."""

    name: str
    batches: dict[str, _Batch[T]]
    clock: TurnClock | None = None
    """Set while it is in the queue."""
    heap: list[tuple[float, int, _Batch[T]]] = field(default_factory=list)
    ring: deque[_Batch[T]] = field(default_factory=deque)
    """Batches that had a turn."""
    fresh: deque[_Batch[T]] = field(default_factory=deque)
    """New batches."""
    welcome: bool = False
    """Whether the last turn of the rotation went to a new batch."""
    urgent: bool = True
    lines: int = 0

    def next(self) -> _Batch[T]:
        """The batch that has the next turn; the project must have a line."""
        urgent, self.urgent = self.urgent, not self.urgent
        batch = self.earliest() if urgent else self._rotated()
        batch.had_turn = True
        return batch

    def earliest(self) -> _Batch[T]:
        """The batch with the earliest deadline; there must be a line."""
        while not (batch := self.heap[0][2]).lines:
            heappop(self.heap)
            batch.in_heap = False
            self._forget(batch)
        return batch

    def _rotated(self) -> _Batch[T]:
        while self.fresh and (self.fresh[0].had_turn or not self.fresh[0].lines):
            self.ring.append(self.fresh.popleft())
        while self.ring and not self.ring[0].lines:
            batch = self.ring.popleft()
            batch.in_ring = False
            self._forget(batch)
        self.welcome = bool(self.fresh) and not (self.welcome and self.ring)
        batch = (self.fresh if self.welcome else self.ring).popleft()
        self.ring.append(batch)
        return batch

    def _forget(self, batch: _Batch[T]) -> None:
        is_listed = batch.in_heap or batch.in_ring or batch.lines.waits
        if not is_listed and self.batches.get(batch.id) is batch:
            del self.batches[batch.id]


class Scheduler(Generic[T]):
    """Lines that wait for a call."""

    def __init__(self, clocks: TurnClocks | None = None, *, prefixes: Prefixes[T] | None = None) -> None:
        """Start empty; with prefixes, lines with a common prefix are called one after the other."""
        self._clocks = clocks or TurnClocks()
        self._prefixes = prefixes
        self._primers: dict[T, _Batch[T]] = {}
        """Primers that were taken, and their batches."""
        self._projects: dict[str, _Project[T]] = {}
        self._batches: dict[str, _Batch[T]] = {}
        self._queue: list[tuple[float, int, str]] = []
        """Projects by the time of their clocks when they were added; the time may have advanced since."""
        self._sequence = 0
        self._lines = 0
        self._turn: _Batch[T] | None = None
        """The batch that has the turn."""
        self._taken = 0
        """Lines taken in this turn."""

    def __len__(self) -> int:
        return self._lines

    def waiting(self, batch_id: str) -> int:
        """Lines of a batch that wait for a call."""
        return batch.lines.lines if (batch := self._batches.get(batch_id)) is not None else 0

    def add(self, lines: Iterable[T], *, project: str, batch_id: str, deadline: float) -> None:
        """Add lines of one batch, in their order; `deadline` is a Unix time."""
        batch = self._batches.get(batch_id) or self._new(project, batch_id, deadline)
        before = len(batch.lines)
        batch.lines.add(lines)
        self._enlist(batch, len(batch.lines) - before)

    def follow(self, clocks: TurnClocks) -> None:
        """Go on with the current backends, and with other clocks."""
        if clocks is not self._clocks:
            self._share(clocks)
        for batch in self._batches.values():
            before = len(batch.lines)
            batch.lines.follow()
            self._enlist(batch, len(batch.lines) - before)

    def take(
        self, at: PrefixBackend | None = None, *, turn_lines: int = 1, chance: float | None = None
    ) -> T | None:
        """The next line for the backend `at`, which is needed only with prefixes; None if no line may be called.

        The turn may have `turn_lines` lines, and at least one. With `chance`, 0 <= chance < 1 at random, it is any
        line of the batch that has the next turn.
        """
        if not self._lines:
            return None
        batch = self._turn
        if batch is None or not batch.lines or self._taken >= turn_lines or chance is not None:
            batch = self._turned()
        self._taken += 1
        clock = batch.project.clock
        assert clock is not None, "a project with lines is in the queue"
        clock.time += clock.step
        before = len(batch.lines)
        line = batch.lines.take(at, chance)
        if batch.lines.is_primer(line):
            self._primers[line] = batch
        self._count(batch, len(batch.lines) - before)
        return line

    def take_along(self, batch_id: str, wants: Callable[[T], bool], span: int) -> None:
        """Take the wanted ones of the next `span` lines of a batch, which are offered in their order.

        They count for its project like any others, and for its turn. Lines in groups by prefix are not offered.
        """
        batch = self._batches.get(batch_id)
        if batch is None or not (taken := batch.lines.take_along(wants, span)):
            return
        clock = batch.project.clock
        assert clock is not None, "a project with lines is in the queue"
        clock.time += taken * clock.step
        if batch is self._turn:
            self._taken += taken
        self._count(batch, -taken)

    def is_primer(self, line: T) -> bool:
        """Whether other lines wait for the call of a line that was taken."""
        return line in self._primers

    def primed(self, line: T) -> bool:
        """Note that the call of a line has ended or takes too long; returns whether other lines waited for it."""
        if (batch := self._primers.pop(line, None)) is None or not batch.lines.is_primer(line):
            return False
        before = len(batch.lines)
        batch.lines.primed(line)
        self._enlist(batch, len(batch.lines) - before)
        return True

    def drop(self, batch_id: str) -> list[T]:
        """Remove and return all lines of a batch."""
        if (batch := self._batches.pop(batch_id, None)) is None:
            return []
        self._count(batch, -len(batch.lines))
        return batch.lines.clear()

    def clear(self) -> list[T]:
        """Remove and return all lines."""
        lines = [line for batch in self._batches.values() for line in batch.lines.clear()]
        for project in self._projects.values():
            self._leave(project)
        self._projects.clear()
        self._batches.clear()
        self._queue.clear()
        self._primers.clear()
        self._lines = 0
        self._turn = None
        return lines

    def next_line(self) -> tuple[float, str, float] | None:
        """Clock and name of the project that is next, and its earliest deadline; None if there is no line."""
        if not self._lines:
            return None
        project, clock = self._first()
        return clock.time, project.name, project.earliest().deadline

    def _first(self) -> tuple[_Project[T], TurnClock]:
        """The project whose clock is the furthest behind; there must be a line."""
        while True:
            at, _, name = self._queue[0]
            project = self._projects[name]
            assert project.clock is not None, "it is in the queue"
            if not project.lines:
                heappop(self._queue)
                self._leave(project)
                self._forget(name)
            elif project.clock.time > at:
                self._sequence += 1
                heapreplace(self._queue, (project.clock.time, self._sequence, name))
            else:
                return project, project.clock

    def _turned(self) -> _Batch[T]:
        """End the turn and begin the next one; there must be a line."""
        project, clock = self._first()
        self._clocks.now = max(self._clocks.now, clock.time)
        self._taken = 0
        self._turn = batch = project.next()
        return batch

    def _leave(self, project: _Project[T]) -> None:
        """Take a project out of the queue."""
        if project.clock is not None:
            project.clock.active -= bool(project.lines)
            project.clock = None
            self._clocks.leave(project.name)

    def _share(self, clocks: TurnClocks) -> None:
        """Switch to other clocks, where the projects that have lines start at the time of the others."""
        queued = [project for project in self._projects.values() if project.clock is not None]
        for project in queued:
            self._leave(project)
        self._clocks = clocks
        self._queue.clear()
        for project in queued:
            self._enqueue(project)

    def _enqueue(self, project: _Project[T]) -> None:
        """Put a project into the queue."""
        clock = project.clock = self._clocks.join(project.name)
        if project.lines:
            self._clocks.activate(clock)
        self._sequence += 1
        heappush(self._queue, (clock.time, self._sequence, project.name))

    def _new(self, project: str, batch_id: str, deadline: float) -> _Batch[T]:
        if (owner := self._projects.get(project)) is None:
            owner = self._projects[project] = _Project(project, self._batches)
        batch = self._batches[batch_id] = _Batch(batch_id, owner, deadline, PrefixGroups(self._prefixes))
        return batch

    def _count(self, batch: _Batch[T], more: int) -> None:
        project = batch.project
        project.lines += more
        self._lines += more
        if more and not project.lines and project.clock is not None:
            project.clock.active -= 1

    def _enlist(self, batch: _Batch[T], added: int) -> None:
        """Count lines of a batch that may be taken now, and put the batch into both orders."""
        if not added:
            return
        project = batch.project
        if not project.lines and project.clock is not None:
            self._clocks.activate(project.clock)
        self._count(batch, added)
        if project.clock is None:
            self._enqueue(project)
        if not batch.in_heap:
            batch.in_heap = True
            self._sequence += 1
            heappush(project.heap, (batch.deadline, self._sequence, batch))
        if not batch.in_ring:
            batch.in_ring = True
            project.fresh.append(batch)

    def _forget(self, name: str) -> None:
        """Remove a project without lines, and its batches, unless lines wait for their primers."""
        if self._prefixes is not None and self._awaits(name):
            return
        project = self._projects.pop(name)
        for batch in (*project.ring, *project.fresh, *(batch for _, _, batch in project.heap)):
            if self._batches.get(batch.id) is batch:
                del self._batches[batch.id]

    def _awaits(self, name: str) -> bool:
        """Whether lines of a project wait for their primers."""
        return any(batch.lines.waits and batch.project.name == name for batch in self._batches.values())
