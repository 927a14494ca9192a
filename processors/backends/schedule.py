"""What a backend may have by the hour of the day: nights for batches, days for others."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from tidemill.configuration.schedule import Hours


def ceiling(ranges: Sequence[Hours]) -> Callable[[float], int | None]:
    """Makes the rule of a schedule: calls in flight at a Unix time; None where no range says anything.

    Where ranges overlap, the smallest number counts. A range may go over midnight. The hours are those of UTC.
    """

    def at(now: float) -> int | None:
        minute = int(now // 60) % 1440
        day = datetime.fromtimestamp(now, UTC).isoweekday()
        return min((one.max_in_flight for one in ranges if _covers(one, minute, day)), default=None)

    return at


def _covers(one: Hours, minute: int, day: int) -> bool:
    """Whether a range covers a minute of a day; what goes over midnight belongs to the day on which it began."""
    start, end = one.start, one.end
    if start < end:
        return start <= minute < end and day in one.days
    before = 7 if day == 1 else day - 1
    return (minute >= start and day in one.days) or (minute < end and before in one.days)
