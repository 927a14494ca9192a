"""Variants of the concurrency limit: the real one, without each of its parts, and plain AIMD as others use it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from tidemill.processors.limits import concurrency_limit
from tidemill.processors.limits.concurrency_limit import ConcurrencyLimit, Slot

CALLS_MAX: Final = 256


class _NoSlowStart:
    level = 1 << 30
    next_at = 0.0

    def tick(self, *_: object) -> None: ...

    def sent(self, _: int) -> int:
        return 0


class _NoLimitProbe:
    def allows(self, _: int) -> bool:
        return True

    def note(self, *_: object, **__: object) -> None: ...

    def reset(self) -> None: ...

    def begin(self) -> None: ...


class Aimd:
    """Additive increase, multiplicative decrease, with a slow start.

    Like the controller of llm-d's batch gateway (`internal/util/semaphore/aimd.go`, commit 09d66eb): after `limit`
    answers without a refusal the limit rises by one; a refusal halves it, down to five. Until the first refusal it
    doubles instead, from eight, while theirs starts at the ceiling.

    `once` ignores refusals of calls that were sent before the last cut, as TCP does, unlike theirs.
    """

    def __init__(self, *, once: bool) -> None:
        self.allowed = self.sure = 8
        self.ripe_at = None
        self._once = once
        self._answers = 0
        self._cuts = 0
        self._all = concurrency_limit._Window(concurrency_limit.WINDOW_CALLS)

    is_pressed = ConcurrencyLimit.is_pressed

    def sent(self, level: int) -> Slot:
        del level
        return Slot(self._cuts, 0, is_edge=False)

    def answered(self, slot: Slot, now: float) -> None:
        del slot, now
        self._all.note(0)
        self._answers += 1
        if self._answers >= self.allowed:
            self._answers = 0
            self._set(self.allowed + 1 if self._cuts else 2 * self.allowed)

    def refused(self, slot: Slot, in_flight: int, now: float, *, late: bool = False) -> None:
        del in_flight, now, late
        self._all.note(1)
        self._answers = 0
        if not self._once or slot.cut == self._cuts:
            self._cuts += 1
            self._set(self.allowed // 2)

    def _set(self, calls: int) -> None:
        self.allowed = self.sure = min(CALLS_MAX, max(5, calls))

    def tick(self, in_flight: int, now: float) -> None: ...

    def halve(self) -> None:
        self._set(self.allowed // 2)

    def hold(self, *_: object, **__: object) -> None: ...


def _without(name: str, part: Callable[[], object]) -> Callable[[], Any]:
    def limit() -> ConcurrencyLimit:
        found = ConcurrencyLimit(CALLS_MAX)
        assert hasattr(found, name), "the limit has this part"
        setattr(found, name, part())
        return found

    return limit


@dataclass(frozen=True)
class Variant:
    """A variant to compare.

    Attributes:
        name: Name of its column.
        limit: Makes the limit of one process.
        reads_metrics: Whether the limit uses the server's metrics.
        trial_slices: Number of slices in which the calls of a trial go out.
    """

    name: str
    limit: Callable[[], Any]
    reads_metrics: bool = True
    trial_slices: int = concurrency_limit.SLICES

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Limits made and used in the block have this variant's slices."""
        before = concurrency_limit.SLICES
        concurrency_limit.SLICES = self.trial_slices  # type: ignore[misc]
        try:
            yield
        finally:
            concurrency_limit.SLICES = before  # type: ignore[misc]


VARIANTS: Final = (
    Variant("as it is", lambda: ConcurrencyLimit(CALLS_MAX)),
    Variant("no slow start", _without("_slow_start", _NoSlowStart)),
    Variant("no slices", lambda: ConcurrencyLimit(CALLS_MAX), trial_slices=1),
    Variant("no limit probe", _without("_limit_probe", _NoLimitProbe)),
    Variant("no load feedback", lambda: ConcurrencyLimit(CALLS_MAX), reads_metrics=False),
    Variant("AIMD", lambda: Aimd(once=False), reads_metrics=False),
    Variant("AIMD, one cut", lambda: Aimd(once=True), reads_metrics=False),
)
