"""Why lines of a model wait: what failed them last, counted as it happens."""

from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from tidemill.processors.failures import CallFailure, FailureKind
from tidemill.processors.lines import Line
from tidemill.schemas.ports import Clock

MESSAGE_CHARS_MAX: Final = 200
WORDS_BYTES_MAX: Final = 4096
"""Of a body that is looked into for the server's words."""


class Waiting(NamedTuple):
    """Lines of one batch that wait for the same reason."""

    batch_id: str
    reason: FailureKind
    """The code of their last failure, as an error line would have it."""
    server: str
    """The base URL of who failed them."""
    status: int | None
    """What it answered, if it did."""
    message: str
    """What was said to the last of them, cut short."""
    lines: int
    since: float
    """Unix time from which on there always was such a line."""


@dataclass(slots=True)
class _Group:
    since: float
    message: str
    lines: int = 0


class FailureAccount:
    """Counts the lines that have failed and have no end yet, by batch and reason."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._batches: dict[str, dict[tuple[FailureKind, str, int | None], _Group]] = {}

    def note(self, line: Line, failure: CallFailure) -> None:
        """A line waits for another try, in place of the reason that it had before."""
        why = (failure.kind, failure.server, failure.status)
        message = _words(failure)[:MESSAGE_CHARS_MAX]
        groups = self._batches.setdefault(line.head.batch_id, {})
        if (group := groups.get(why)) is None:
            group = groups[why] = _Group(self._clock(), message)
        group.lines += 1
        group.message = message
        self.forget(line)
        line.reason = why

    def forget(self, line: Line) -> None:
        """A line waits no more."""
        if (why := line.reason) is None:
            return
        line.reason = None
        groups = self._batches[line.head.batch_id]
        groups[why].lines -= 1
        if not groups[why].lines:
            del groups[why]
            if not groups:
                del self._batches[line.head.batch_id]

    def waiting(self) -> list[Waiting]:
        """All that wait; takes time by reasons, and not by lines."""
        return [
            Waiting(batch_id, *why, group.message, group.lines, group.since)
            for batch_id, groups in self._batches.items()
            for why, group in groups.items()
        ]


class _Error(msgspec.Struct):
    message: str = ""


class _Body(msgspec.Struct):
    error: _Error = msgspec.field(default_factory=_Error)


_bodies: Final = msgspec.json.Decoder(_Body)


def _words(failure: CallFailure) -> str:
    """What the server said; empty where that is no more than its status."""
    if failure.kind is not FailureKind.STATUS:
        return failure.message
    try:
        words = _bodies.decode(failure.body).error.message if len(failure.body) <= WORDS_BYTES_MAX else ""
    except (msgspec.MsgspecError, RecursionError):
        return ""
    return "" if words == failure.message else words
