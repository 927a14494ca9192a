"""Which line is next.

Projects take turns, as often as their weights say: each has a clock that one of its lines moves on by the inverse
of its weight, and the one whose clock is the furthest behind is next. Who comes anew starts at the time of the
others, so that nobody saves up turns. Within a project one turn goes to the batch whose deadline is earliest, the
next to the batches in rotation. So an urgent batch gets at least half of its project's calls, and a batch of ten
lines behind one of fifty thousand is done after a few dozen calls.

Within a batch lines keep their order, or go by the beginnings of their prompts (`groups.py`); one that comes back
from a wait goes first.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from heapq import heappop, heappush, heapreplace
from typing import Generic, TypeVar

from tidemill.processors.groups import Groups, Place, Prefixes

T = TypeVar("T")


class _Batch(Generic[T]):
    __slots__ = ("deadline", "id", "in_heap", "in_ring", "lines", "project")

    def __init__(self, batch_id: str, project: "_Project[T]", deadline: float, lines: Groups[T]) -> None:
        self.id = batch_id
        self.project = project
        self.deadline = deadline
        self.lines = lines
        self.in_heap = False
        self.in_ring = False


class _Project(Generic[T]):
    """A project's batches in two orders; a batch without lines stays in each until it comes up there."""

    __slots__ = ("batches", "heap", "in_queue", "lines", "name", "ring", "time", "urgent", "weight")

    def __init__(self, name: str, batches: dict[str, _Batch[T]], weight: float) -> None:
        self.name = name
        self.weight = weight
        self.time = 0.0
        self.batches = batches
        self.heap: list[tuple[float, int, _Batch[T]]] = []
        self.ring: deque[_Batch[T]] = deque()
        self.urgent = True
        self.lines = 0
        self.in_queue = False

    def next(self) -> _Batch[T]:
        """The batch whose turn it is; there must be a line."""
        urgent, self.urgent = self.urgent, not self.urgent
        return self._earliest() if urgent else self._rotated()

    def _earliest(self) -> _Batch[T]:
        while not (batch := self.heap[0][2]).lines:
            heappop(self.heap)
            batch.in_heap = False
            self._forget(batch)
        return batch

    def _rotated(self) -> _Batch[T]:
        while not (batch := self.ring.popleft()).lines:
            batch.in_ring = False
            self._forget(batch)
        self.ring.append(batch)
        return batch

    def _forget(self, batch: _Batch[T]) -> None:
        is_listed = batch.in_heap or batch.in_ring or batch.lines.waits
        if not is_listed and self.batches.get(batch.id) is batch:
            del self.batches[batch.id]


class Order(Generic[T]):
    """Lines that wait for a call."""

    def __init__(self, weights: Mapping[str, float] | None = None, *, prefixes: Prefixes[T] | None = None) -> None:
        """Be empty.

        Args:
            weights: Of projects; one that is not named has the weight 1.
            prefixes: Set where lines that begin alike are to go one after the other.
        """
        self._weights = weights or {}
        self._prefixes = prefixes
        self._primers: dict[T, _Batch[T]] = {}
        """Those that were taken, and their batches."""
        self._projects: dict[str, _Project[T]] = {}
        self._batches: dict[str, _Batch[T]] = {}
        self._queue: list[tuple[float, int, str]] = []
        """Of projects, by their clocks."""
        self._time = 0.0
        self._sequence = 0
        self._lines = 0

    def __len__(self) -> int:
        return self._lines

    def add(
        self, lines: Iterable[T], *, project: str, batch_id: str, deadline: float, first: bool = False
    ) -> None:
        """Let lines of one batch wait.

        Args:
            lines: They keep their order.
            project: Whose they are.
            batch_id: Their batch.
            deadline: Unix time.
            first: Whether they go before what waits of the batch already.
        """
        batch = self._batches.get(batch_id) or self._new(project, batch_id, deadline)
        before = len(batch.lines)
        if first:
            batch.lines.put_first(lines)
        else:
            batch.lines.add(lines)
        self._enlist(batch, len(batch.lines) - before)

    def take(self, at: Place | None = None) -> T | None:
        """The next line; None where there is none that may be called.

        Args:
            at: Where it will be called; not needed where lines do not go by their beginnings.
        """
        if not self._lines:
            return None
        while not (project := self._projects[self._queue[0][2]]).lines:
            project.in_queue = False
            self._forget(heappop(self._queue)[2])
        name = self._queue[0][2]
        self._time = project.time
        project.time += 1 / project.weight
        self._sequence += 1
        heapreplace(self._queue, (project.time, self._sequence, name))
        batch = project.next()
        before = len(batch.lines)
        line = batch.lines.take(at)
        if batch.lines.is_primer(line):
            self._primers[line] = batch
        self._count(batch, len(batch.lines) - before)
        return line

    def is_primer(self, line: T) -> bool:
        """Whether a line that was taken is one for whose end others wait."""
        return line in self._primers

    def primed(self, line: T) -> bool:
        """The call of a line has ended, or takes too long; says whether others waited for it."""
        if (batch := self._primers.pop(line, None)) is None or not batch.lines.is_primer(line):
            return False
        before = len(batch.lines)
        batch.lines.primed(line)
        self._enlist(batch, len(batch.lines) - before)
        return True

    def drop(self, batch_id: str) -> list[T]:
        """Take out all lines of a batch."""
        if (batch := self._batches.pop(batch_id, None)) is None:
            return []
        self._count(batch, -len(batch.lines))
        return batch.lines.clear()

    def clear(self) -> list[T]:
        """Take out all lines."""
        lines = [line for batch in self._batches.values() for line in batch.lines.clear()]
        self._projects.clear()
        self._batches.clear()
        self._queue.clear()
        self._primers.clear()
        self._lines = 0
        return lines

    def _new(self, project: str, batch_id: str, deadline: float) -> _Batch[T]:
        if (owner := self._projects.get(project)) is None:
            owner = self._projects[project] = _Project(project, self._batches, self._weights.get(project, 1.0))
        batch = self._batches[batch_id] = _Batch(batch_id, owner, deadline, Groups(self._prefixes))
        return batch

    def _count(self, batch: _Batch[T], more: int) -> None:
        batch.project.lines += more
        self._lines += more

    def _enlist(self, batch: _Batch[T], added: int) -> None:
        """So many lines of the batch may be taken that could not be before."""
        if not added:
            return
        self._count(batch, added)
        project = batch.project
        if not batch.in_heap:
            batch.in_heap = True
            self._sequence += 1
            heappush(project.heap, (batch.deadline, self._sequence, batch))
        if not batch.in_ring:
            batch.in_ring = True
            project.ring.append(batch)
        if not project.in_queue:
            project.in_queue = True
            project.time = max(project.time, self._time)
            self._sequence += 1
            heappush(self._queue, (project.time, self._sequence, project.name))

    def _forget(self, name: str) -> None:
        """A project without lines: it and its batches are made anew when they have some."""
        if self._prefixes is not None and self._awaits(name):
            return
        project = self._projects.pop(name)
        for batch in (*project.ring, *(batch for _, _, batch in project.heap)):
            if self._batches.get(batch.id) is batch:
                del self._batches[batch.id]

    def _awaits(self, name: str) -> bool:
        """Whether lines of a project wait for their primers."""
        return any(batch.lines.waits and batch.project.name == name for batch in self._batches.values())
