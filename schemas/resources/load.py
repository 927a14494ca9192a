"""The load of servers and models, as each process of processors reports it, and as the api adds it up.

A process measures its own calls, so calls and rates of several processes add up. The numbers that a server reports
of itself (`queued`, `running`) are the same for all, so the latest report counts.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field, StringConstraints

from tidemill.schemas.bounds import NUMBER_MAX, Name, Number, Shape, Time
from tidemill.schemas.resources.waiting import MESSAGE_CHARS_MAX, Reason

SERVERS_MAX: Final = 120
"""Servers, and models, of one report: the busiest ones."""
BUCKETS_MAX: Final = 32
MINUTE: Final = 60
"""Seconds that counts of a report cover."""
HEARTBEAT_SECONDS: Final = 10
"""The longest time between two reports of a process."""
STALE_SECONDS: Final = 3 * HEARTBEAT_SECONDS + 5
"""A process without a report for this time is gone."""

Rate = Annotated[float, Field(ge=0, le=NUMBER_MAX, allow_inf_nan=False)]
Buckets = Annotated[tuple[Number, ...], Field(max_length=BUCKETS_MAX)]
"""How many calls took up to each bound of `metrics.CALL_SECONDS`, not cumulative; the last ones took longer."""


class BreakerState(StrEnum):
    """Which calls a server's circuit breaker lets through."""

    CLOSED = "closed"
    PROBING = "probing"
    """It gets a few calls, and more once it answers."""
    OPEN = "open"
    """It failed, and gets no call for some seconds."""


class Cause(Shape):
    """Why lines wait for a server."""

    reason: Reason
    status: Annotated[int, Field(ge=100, le=999)] | None = None
    """The status of the server's answer."""
    message: Annotated[str, StringConstraints(max_length=MESSAGE_CHARS_MAX)]
    """A sentence."""
    since: Time


class ServerLoad(Shape):
    """One server, as one process sees it."""

    name: Name
    """The server's name, followed by `@` and its address if its addresses are discovered."""
    limit: Number
    """Calls that the process may have in flight now."""
    in_flight: Number
    unacknowledged: Number
    """Results that the log has not acknowledged."""
    refused: Number
    """Calls that it refused because it was full, in the last minute."""
    lines_per_second: Rate
    tokens_per_second: Rate
    """Tokens of prompts and answers."""
    durations: Buckets = ()
    """The durations of the calls that ended in the last minute."""
    first_bytes: Buckets = ()
    """The time to the head of their replies."""
    queued: Number | None = None
    """Requests of all clients that wait in the server, if its metrics say so."""
    running: Number | None = None
    """Requests of all clients that it works on."""
    lines_waiting: Number
    """Lines of its models that wait for a call in this process; a line for two servers counts for both."""
    breaker: BreakerState
    cause: Cause | None = None
    """Why lines wait, if they do or if it takes no call."""


class ModelLoad(Shape):
    """One model, as one process sees it."""

    name: Name
    in_flight: Number
    """Calls."""
    lines_waiting: Number
    """Lines that wait for a call."""
    lines_per_second: Rate
    cause: Cause | None = None
    """Why none of its servers takes a call of it, if so."""


class ProcessReport(Shape):
    """The value of `tidemill.servers`, by the name of the process."""

    process: Name
    """Its host and process id."""
    servers: Annotated[tuple[ServerLoad, ...], Field(max_length=SERVERS_MAX)]
    models: Annotated[tuple[ModelLoad, ...], Field(max_length=SERVERS_MAX)]
    omitted: Number = 0
    """Servers and models that did not fit."""


def added(counts: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """The sum of histograms with the same bounds; shorter ones lack the last buckets."""
    found: list[int] = []
    for each in counts:
        found += [0] * (len(each) - len(found))
        for place, count in enumerate(each):
            found[place] += count
    return tuple(found)


def quantile(bounds: tuple[float, ...], counts: tuple[int, ...], share: float) -> float | None:
    """The value below which a share of the observations lie, by interpolation in its bucket; None without any.

    A value above the last bound is taken as that bound.
    """
    left = share * sum(counts)
    if not left:
        return None
    low = 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if left <= count:
            return low + (bound - low) * left / count
        left -= count
        low = bound
    return low
