"""The alarms of a partition: when each of its batches is to be looked at next, though nothing has come for it."""

from heapq import heappop, heappush


class Timers:
    """One alarm a batch, the earliest that was set."""

    def __init__(self) -> None:
        self._set: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        """Also those that an earlier one has replaced, or that were dropped, until their time has come."""

    @property
    def next(self) -> float | None:
        """When the next one is due, Unix seconds."""
        while self._heap and self._set.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def set(self, batch_id: str, at: float) -> None:
        """Set a batch's alarm, unless it has an earlier one."""
        if at < self._set.get(batch_id, float("inf")):
            self._set[batch_id] = at
            heappush(self._heap, (at, batch_id))

    def drop(self, batch_id: str) -> None:
        """The batch needs none any more."""
        self._set.pop(batch_id, None)

    def due(self, now: float) -> list[str]:
        """The batches whose time has come; their alarms are over."""
        found = []
        while (at := self.next) is not None and at <= now:
            found.append(heappop(self._heap)[1])
            del self._set[found[-1]]
        return found

    def clear(self) -> None:
        """Drop all."""
        self._set.clear()
        self._heap.clear()
