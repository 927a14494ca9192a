"""Which line is next.

Projects take turns, as often as their weights say: each has a clock that one of its lines moves on by the inverse
of its weight, and the one whose clock is the furthest behind is next. Who comes anew starts at the time of the
others, so that nobody saves up turns. Within a project one turn goes to the batch whose deadline is earliest, the
next to the batches in rotation. So an urgent batch gets at least half of its project's calls.

A turn is a stretch of lines of one batch: results that come together share a record of the log, however many
batches are at work. How long it may be is said with each call. A batch that comes anew has its first turn before
the rotation goes on, and where many come, every second turn of the rotation is for one of them: ten lines behind
many batches of fifty thousand wait for two turns, and for those of others that came just before.

Within a batch lines keep their order, or go by the beginnings of their prompts (`prefix_groups.py`). Where lines
fail, one is taken at random, and its turn is over with it: so good lines are found behind any number of bad ones.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from heapq import heappop, heappush, heapreplace
from typing import Generic, TypeVar

from tidemill.processors.scheduling.prefix_groups import Place, Prefixes, PrefixGroups

T = TypeVar("T")


class _Batch(Generic[T]):
    __slots__ = ("deadline", "had_turn", "id", "in_heap", "in_ring", "lines", "project")

    def __init__(self, batch_id: str, project: "_Project[T]", deadline: float, lines: PrefixGroups[T]) -> None:
        self.id = batch_id
        self.project = project
        self.deadline = deadline
        self.lines = lines
        self.had_turn = False
        self.in_heap = False
        self.in_ring = False


class _Project(Generic[T]):
    """A project's batches in two orders; a batch without lines stays in each until it comes up there."""

    __slots__ = (
        "batches",
        "fresh",
        "heap",
        "in_queue",
        "lines",
        "name",
        "ring",
        "time",
        "urgent",
        "weight",
        "welcome",
    )

    def __init__(self, name: str, batches: dict[str, _Batch[T]], weight: float) -> None:
        self.name = name
        self.weight = weight
        self.time = 0.0
        self.batches = batches
        self.heap: list[tuple[float, int, _Batch[T]]] = []
        self.ring: deque[_Batch[T]] = deque()
        """Those that had a turn."""
        self.fresh: deque[_Batch[T]] = deque()
        """Those that had none when they came."""
        self.welcome = False
        """Whether the last turn of the rotation was one of these."""
        self.urgent = True
        self.lines = 0
        self.in_queue = False

    def next(self) -> _Batch[T]:
        """The batch whose turn it is; there must be a line."""
        urgent, self.urgent = self.urgent, not self.urgent
        batch = self._earliest() if urgent else self._rotated()
        batch.had_turn = True
        return batch

    def _earliest(self) -> _Batch[T]:
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
        self._turn: _Batch[T] | None = None
        """Whose turn it is; its project is the first of the queue, whose clock moves when the turn is over."""
        self._taken = 0
        """Lines of this turn."""

    def __len__(self) -> int:
        return self._lines

    def waiting(self, batch_id: str) -> int:
        """Lines of a batch that wait for a call."""
        return len(batch.lines) if (batch := self._batches.get(batch_id)) is not None else 0

    def add(self, lines: Iterable[T], *, project: str, batch_id: str, deadline: float) -> None:
        """Let lines of one batch wait.

        Args:
            lines: They keep their order.
            project: Whose they are.
            batch_id: Their batch.
            deadline: Unix time.
        """
        batch = self._batches.get(batch_id) or self._new(project, batch_id, deadline)
        before = len(batch.lines)
        batch.lines.add(lines)
        self._enlist(batch, len(batch.lines) - before)

    def take(self, at: Place | None = None, *, stretch: int = 1, chance: float | None = None) -> T | None:
        """The next line; None where there is none that may be called.

        Args:
            at: Where it will be called; not needed where lines do not go by their beginnings.
            stretch: Lines that a turn may have, as things are now; it has one in any case.
            chance: A random number, 0 <= chance < 1, to take any line of the batch whose turn it is.
        """
        if not self._lines:
            return None
        batch = self._turn
        if batch is None or not batch.lines or self._taken >= stretch or chance is not None:
            batch = self._turned()
        self._taken += 1
        before = len(batch.lines)
        line = batch.lines.take(at, chance)
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
        self._turn = None
        return lines

    def _turned(self) -> _Batch[T]:
        """End the turn, and begin the next one; there must be a line."""
        if self._turn is not None:
            project = self._turn.project
            project.time += self._taken / project.weight
            self._sequence += 1
            heapreplace(self._queue, (project.time, self._sequence, project.name))
        while not (project := self._projects[self._queue[0][2]]).lines:
            project.in_queue = False
            self._forget(heappop(self._queue)[2])
        self._time = project.time
        self._taken = 0
        self._turn = batch = project.next()
        return batch

    def _new(self, project: str, batch_id: str, deadline: float) -> _Batch[T]:
        if (owner := self._projects.get(project)) is None:
            owner = self._projects[project] = _Project(project, self._batches, self._weights.get(project, 1.0))
        batch = self._batches[batch_id] = _Batch(batch_id, owner, deadline, PrefixGroups(self._prefixes))
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
            project.fresh.append(batch)
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
        for batch in (*project.ring, *project.fresh, *(batch for _, _, batch in project.heap)):
            if self._batches.get(batch.id) is batch:
                del self._batches[batch.id]

    def _awaits(self, name: str) -> bool:
        """Whether lines of a project wait for their primers."""
        return any(batch.lines.waits and batch.project.name == name for batch in self._batches.values())
