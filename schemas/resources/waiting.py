"""Why lines wait: the reasons in batches, metrics, commands, the dashboard and error lines."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field, StringConstraints

from tidemill.schemas.bounds import Number, Shape, Time

WAITING_MAX: Final = 8
"""Reasons that a batch lists."""
EXPLAINED_MAX: Final = 2
"""Reasons in each error line of an expired batch, which may have many such lines."""
MESSAGE_CHARS_MAX: Final = 300
SERVER_CHARS_MAX: Final = 255


class Reason(StrEnum):
    """Why lines wait; docs/reference/waiting.md says what to do."""

    SERVER_UNREACHABLE = "server_unreachable"
    """No connection to the server."""
    SERVER_REFUSES = "server_refuses"
    """The server rejects calls: it is full, or does not accept our key."""
    SERVER_FAILS = "server_fails"
    """The server drops connections, or answers with errors of its own."""
    SERVER_SILENT = "server_silent"
    """The server accepts calls and answers none of them."""
    IN_FLIGHT = "in_flight"
    """The server works on these lines, and answers others."""
    QUEUED = "queued"
    """Other lines, of any batch, have their turn."""
    SCHEDULE = "schedule"
    """The server accepts no calls at this hour."""
    DRAINED = "drained"
    """The settings drain the server."""
    PAUSED = "paused"
    """The settings pause the model."""
    REMOVED = "removed"
    """The model was removed."""
    ACCESS = "access"
    """The process lacks the server's key, or a file of its TLS settings."""
    HEADROOM = "headroom"
    """Other clients use the server's whole capacity."""
    TOKENS_PER_MINUTE = "tokens_per_minute"
    """The tokens of this minute are used."""
    MEMORY = "memory"
    """Other large lines use the memory for large lines."""
    STORE = "store"
    """The object store does not answer."""
    KEY = "key"
    """The key of the batch cannot be unwrapped."""
    DELIVERY = "delivery"
    """The log or the store does not accept results."""
    BATCHES_AT_WORK = "batches_at_work"
    """The project has as many batches at work as it may have."""
    VALIDATION = "validation"
    """The input has not been validated yet."""
    OPEN = "open"
    """The batch is open: it waits for more lines, or for its seal."""
    NO_PROCESSOR = "no_processor"
    """No process has reported on the lines."""
    FILES = "files"
    """The files of the batch cannot be written."""
    IMPORT = "import"
    """The input is copied from its bucket."""
    BUCKET = "bucket"
    """The bucket of the input, or of the copy of the output, refuses or does not answer."""


USUAL: Final = frozenset({
    Reason.IN_FLIGHT, Reason.QUEUED, Reason.VALIDATION, Reason.BATCHES_AT_WORK, Reason.IMPORT, Reason.OPEN,
})  # fmt: skip
"""Reasons in normal operation."""


class Waiting(Shape):
    """Lines of one batch that wait for the same reason."""

    reason: Reason
    lines: Number
    """A line that two servers could take counts for both."""
    server: Annotated[str, StringConstraints(max_length=SERVER_CHARS_MAX)] | None = None
    """The server's base URL."""
    status: Annotated[int, Field(ge=100, le=999)] | None = None
    """The status of the server's answer."""
    message: Annotated[str, StringConstraints(max_length=MESSAGE_CHARS_MAX)]
    """A sentence."""
    since: Time

    @classmethod
    def of(
        cls,
        reason: Reason,
        message: str,
        *,
        since: float,
        lines: int = 0,
        server: str | None = None,
        status: int | None = None,
    ) -> "Waiting":
        """Make one whose texts are cut to their bounds; `since` is in Unix seconds."""
        return cls(
            reason=reason,
            lines=lines,
            server=None if server is None else server[:SERVER_CHARS_MAX],
            status=status,
            message=message[:MESSAGE_CHARS_MAX],
            since=max(0, int(since)),
        )


Waits = Annotated[tuple[Waiting, ...], Field(max_length=WAITING_MAX)]


def merged(waits: Iterable[Waiting], lines_max: int) -> tuple[Waiting, ...]:
    """Merge the reports of several processes, sorted by stalls first, then by lines.

    `lines_max`, the lines of the batch without a result, bounds those of each reason.
    """
    found: dict[tuple[Reason, str | None, int | None], Waiting] = {}
    for one in sorted(waits, key=lambda one: (one.since, one.message)):
        key = (one.reason, one.server, one.status)
        if (known := found.get(key)) is not None:
            message = max(known.message, one.message, key=len)  # the longer one quotes the server
            one = known.model_copy(update={"lines": known.lines + one.lines, "message": message})  # noqa: PLW2901
        found[key] = one
    capped = [one.model_copy(update={"lines": min(one.lines, lines_max)}) for one in found.values()]
    # Otherwise lines that queue behind a stalled server could hide the stall.
    capped.sort(
        key=lambda one: (one.reason in USUAL, -one.lines, one.since, one.reason, one.server or "", one.status or 0)
    )
    return tuple(capped[:WAITING_MAX])


def bounded(waits: Iterable[Waiting], lines_max: int) -> tuple[Waiting, ...]:
    """The reasons in the same order with at most so many lines each; at 0, without those that had any."""
    kept = (one for one in waits if lines_max or not one.lines)
    return tuple(one.model_copy(update={"lines": min(one.lines, lines_max)}) for one in kept)


def explanation(waits: Sequence[Waiting]) -> str:
    """The reasons why lines were not run, as text for their error lines; empty if there are none."""
    return " ".join(f"Reason: {one.message} (since {moment(one.since)})" for one in waits[:EXPLAINED_MAX])


def moment(at: int) -> str:
    """A time in UTC as text."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
