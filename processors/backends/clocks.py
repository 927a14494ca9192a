"""The clocks of projects, by which schedulers decide whose turn it is; see `scheduling/scheduler.py`."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class TurnClock:
    """The clock of one project."""

    step: float
    """The inverse of its weight."""
    time: float = 0.0
    queues: int = 0
    """Schedulers that have the project in their queue."""
    active: int = 0
    """Schedulers in which the project has lines."""


class TurnClocks:
    """The clocks of the projects, for one scheduler or for those of several models."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        """Start without projects; a project without a weight has the weight 1."""
        self.weights = weights or {}
        self.now = 0.0
        """The time of the last turn."""
        self._clocks: dict[str, TurnClock] = {}

    def join(self, project: str) -> TurnClock:
        """Return the clock of a project, and note that one more scheduler has the project in its queue."""
        if (clock := self._clocks.get(project)) is None:
            clock = self._clocks[project] = TurnClock(1 / self.weights.get(project, 1.0))
        clock.queues += 1
        return clock

    def leave(self, project: str) -> None:
        """Note that a scheduler has removed the project from its queue."""
        clock = self._clocks[project]
        clock.queues -= 1
        if not clock.queues:
            del self._clocks[project]

    def activate(self, clock: TurnClock) -> None:
        """Note that one more scheduler has lines of the project; the first sets it to the time of the others."""
        if not clock.active:
            clock.time = max(clock.time, self.now)
        clock.active += 1
