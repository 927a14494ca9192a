"""Why lines wait: one vocabulary for the batch, the metrics, the commands, the dashboard and the error lines."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from tidemill.schemas.bounds import Number, Time

WAITING_MAX: Final = 8
"""Reasons that a batch names at one time, those of the most lines."""
TOLD_MAX: Final = 2
"""Of these, in each error line of an expired batch: it has as many of them as there were lines left."""
MESSAGE_CHARS_MAX: Final = 300
SERVER_CHARS_MAX: Final = 255


class Reason(StrEnum):
    """What lines wait for; docs/reference/waiting.md says what to do about each."""

    SERVER_UNREACHABLE = "server_unreachable"
    """No connection to the server."""
    SERVER_REFUSES = "server_refuses"
    """The server answers with a status that says: not now, or not you."""
    SERVER_FAILS = "server_fails"
    """The server breaks off, or answers with a fault of its own."""
    SERVER_SILENT = "server_silent"
    """The server takes calls and answers none of them."""
    IN_FLIGHT = "in_flight"
    """The server answers other lines, and works on these."""
    QUEUED = "queued"
    """Other lines have their turn, of other batches or of the same."""
    SCHEDULE = "schedule"
    """The server takes no calls at this hour."""
    DRAINED = "drained"
    """The settings let no call go to the server."""
    HEADROOM = "headroom"
    """Requests of others take all that the server has."""
    TOKENS_PER_MINUTE = "tokens_per_minute"
    """The tokens of this minute are used."""
    MEMORY = "memory"
    """Other large lines take the memory that is set aside for their calls."""
    STORE = "store"
    """The object store does not answer."""
    KEY = "key"
    """The key of the batch cannot be unwrapped."""
    DELIVERY = "delivery"
    """Results are there, and the log or the store does not take them."""
    VALIDATION = "validation"
    """The input is not checked yet."""
    NO_PROCESSOR = "no_processor"
    """No process has reported on the lines."""
    FILES = "files"
    """The files of the batch cannot be written."""


USUAL: Final = frozenset({Reason.IN_FLIGHT, Reason.QUEUED, Reason.VALIDATION})
"""What lines wait for in normal operation."""


class Waiting(BaseModel):
    """Lines of one batch that wait for the same thing."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    reason: Reason
    lines: Number
    """A line that could go to either of two servers counts with both."""
    server: Annotated[str, StringConstraints(max_length=SERVER_CHARS_MAX)] | None = None
    """The server's base URL."""
    status: Annotated[int, Field(ge=100, le=999)] | None = None
    """What it answered."""
    message: Annotated[str, StringConstraints(max_length=MESSAGE_CHARS_MAX)]
    """What it is, in a sentence."""
    since: Time


Waits = Annotated[tuple[Waiting, ...], Field(max_length=WAITING_MAX)]


def merged(waits: Iterable[Waiting], lines_max: int) -> tuple[Waiting, ...]:
    """Sum up what several processes say of their parts of a batch: stalls first, then by lines.

    Args:
        waits: In any order.
        lines_max: Lines of the batch that have no result: no reason holds more.
    """
    found: dict[tuple[Reason, str | None, int | None], Waiting] = {}
    for one in sorted(waits, key=lambda one: (one.since, one.message)):
        key = (one.reason, one.server, one.status)
        if (known := found.get(key)) is not None:
            message = max(known.message, one.message, key=len)  # with the server's own words
            one = known.model_copy(update={"lines": known.lines + one.lines, "message": message})  # noqa: PLW2901
        found[key] = one
    capped = [one.model_copy(update={"lines": min(one.lines, lines_max)}) for one in found.values()]
    # Lines that queue behind a stalled server would hide its reason.
    capped.sort(
        key=lambda one: (one.reason in USUAL, -one.lines, one.since, one.reason, one.server or "", one.status or 0)
    )
    return tuple(capped[:WAITING_MAX])


def explanation(waits: Sequence[Waiting]) -> str:
    """The reasons why lines were not run, as text for their error lines; empty if there are none."""
    return " ".join(f"What held it up: {one.message} (since {moment(one.since)})" for one in waits[:TOLD_MAX])


def moment(at: int) -> str:
    """A time in UTC, as people read it."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
