"""Large lines that wait for memory.

A large line is in the store, and its text is in memory during its call; a budget bounds the bytes of all such
lines of a process. A line without room in the budget leaves the scheduler and waits here, so that later lines are
called meanwhile. Each model requests memory for one line at a time, and the budget serves models in the order of
their requests. Projects take turns among the waiting lines of a model as they do for calls.

A line that has memory is called next. If its model has no call in flight and its servers take none, it releases
the memory, and requests it again once they do.
"""

from collections.abc import Callable, Iterable, Mapping

from tidemill.processors.backends.clocks import TurnClocks
from tidemill.processors.lines import Line
from tidemill.processors.memory_budget import LineBudget, Request
from tidemill.processors.scheduling.scheduler import Scheduler


class LargeLines:
    """The large lines of one model."""

    def __init__(self, budget: LineBudget, weights: Mapping[str, float] | None, wake: Callable[[], None]) -> None:
        """Start empty; projects without a weight have the weight 1.

        All models of the process share the budget. `wake` is called when a line got memory; it must not call back
        at once.
        """
        self._budget = budget
        self._lines: Scheduler[Line] = Scheduler(TurnClocks(weights))
        self._wake = wake
        self._first: Line | None = None
        """The line that is called next."""
        self._request: Request | None = None
        """Its request for memory, until it is granted."""

    def __bool__(self) -> bool:
        return self._first is not None

    @property
    def ready(self) -> Line | None:
        """The line that may be called next: it has memory, or `admit` may give it some."""
        is_waiting = self._request is not None and not self._request.is_granted
        return None if is_waiting else self._first

    def waiting(self, batch_id: str) -> int:
        """Lines of a batch that wait for memory."""
        first = self._first
        return self._lines.waiting(batch_id) + (first is not None and first.head.batch_id == batch_id)

    def admit(self, line: Line) -> bool:
        """Take memory for a line until `release`; False if there is none, and the line waits here."""
        if line is self._first:
            if self._request is None and not self._budget.take(line.size):
                self._request = self._budget.ask(line.size, self._wake)
                return False
            self._request = self._first = None
            self._advance()
            return True
        if self._first is None and self._budget.take(line.size):
            return True
        head = line.head
        self._lines.add((line,), project=head.project, batch_id=head.batch_id, deadline=head.deadline)
        self._advance()
        return False

    def release(self, line: Line) -> None:
        """Free the memory of an admitted line."""
        self._budget.release(line.size)

    def suspend(self) -> None:
        """Release the memory for other models, since no server takes calls."""
        request, self._request = self._request, None
        if request is not None:
            self._budget.withdraw(request)

    def drop(self, batch_id: str) -> list[Line]:
        """Remove and return all lines of a batch."""
        lines = self._lines.drop(batch_id)
        if self._first is not None and self._first.head.batch_id == batch_id:
            lines += self._take_first()
            self._advance()
        return lines

    def clear(self) -> list[Line]:
        """Remove and return all lines."""
        return [*self._take_first(), *self._lines.clear()]

    def _take_first(self) -> Iterable[Line]:
        self.suspend()
        first, self._first = self._first, None
        return () if first is None else (first,)

    def _advance(self) -> None:
        """Request memory for the next line, unless one is requested already."""
        if self._first is None and (line := self._lines.take()) is not None:
            self._first = line
            self._request = self._budget.ask(line.size, self._wake)
