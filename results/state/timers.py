"""The timers of a partition's batches; a step of the wall clock sets them again."""

from heapq import heappop, heappush


class Timers:
    """One timer for each batch: the earliest that was set."""

    def __init__(self) -> None:
        self._set: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        """All timers; replaced and removed ones stay until they are due."""

    @property
    def next(self) -> float | None:
        """When the next timer is due, Unix seconds."""
        while self._heap and self._set.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def set(self, batch_id: str, at: float) -> None:
        """Set the timer of a batch, unless it has an earlier one."""
        if at < self._set.get(batch_id, float("inf")):
            self._set[batch_id] = at
            heappush(self._heap, (at, batch_id))

    def drop(self, batch_id: str) -> None:
        """Remove the timer of a batch."""
        self._set.pop(batch_id, None)

    def due(self, now: float) -> list[str]:
        """Remove the timers that are due, and return their batches."""
        found = []
        while (at := self.next) is not None and at <= now:
            found.append(heappop(self._heap)[1])
            del self._set[found[-1]]
        return found

    def clear(self) -> None:
        """Remove all timers."""
        self._set.clear()
        self._heap.clear()
