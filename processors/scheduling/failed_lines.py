"""Counts the lines that wait for another call, by batch and by what failed the last one."""

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Final, NamedTuple

from tidemill.bounded_dict import BoundedDict
from tidemill.processors.failures import NOT_MADE, CallFailure, FailureKind
from tidemill.processors.lines import Line
from tidemill.schemas.jsonl import server_error
from tidemill.schemas.ports import Clock

MESSAGE_CHARS_MAX: Final = 200
SERVERS_MAX: Final = 1_000
"""Servers of a model whose last failures are kept."""
BODY_BYTES_MAX: Final = 4096
"""Size of an error body; a larger one is not searched for a message."""


class FailedGroup(NamedTuple):
    """Lines of one batch whose last calls failed in the same way."""

    batch_id: str
    reason: FailureKind
    server: str
    """Its name."""
    status: int | None
    """The status of the answer, if there was one."""
    message: str
    """The latest error message, cut; of a server that cannot be reached, why."""
    lines: int
    since: float
    """Unix time since which the group has never been empty."""


@dataclass(slots=True)
class _Group:
    since: float
    message: str
    lines: int = 0


class FailedLines:
    """The counts; the cost of `groups` depends on the number of groups, not of lines."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.is_secret: Callable[[str], bool] = lambda _: False
        """Whether no message of a server may be kept of a batch: it may quote the line."""
        self.latest: BoundedDict[str, FailedGroup] = BoundedDict(SERVERS_MAX)
        """By server, the line that failed there last, alone; it stays while that line is called again. Its message
        is in fixed words."""
        self._quotes: dict[str, tuple[str, str]] = {}
        """By server, the batch of that line and what the server said, which may quote the line; as long as that
        batch has lines here."""
        self._batches: dict[str, dict[tuple[FailureKind, str, int | None], _Group]] = {}

    def note(self, line: Line, failure: CallFailure) -> None:
        """Count a line that waits after this failure; its earlier failure no longer counts."""
        reason = (failure.kind, failure.server, failure.status)
        message = self._message(failure, line.head.batch_id)
        groups = self._batches.setdefault(line.head.batch_id, {})
        if (group := groups.get(reason)) is None:
            group = groups[reason] = _Group(self._clock(), message)
        group.lines += 1
        group.message = message
        if failure.kind not in NOT_MADE:
            known = failure.cause if failure.kind is FailureKind.CONNECT else ""
            self.latest[failure.server] = FailedGroup(line.head.batch_id, *reason, known, 1, group.since)
            self._quotes[failure.server] = line.head.batch_id, message
        self.forget(line)
        line.reason = reason

    def forget(self, line: Line) -> None:
        """Stop counting a line."""
        if (reason := line.reason) is None:
            return
        line.reason = None
        groups = self._batches[line.head.batch_id]
        groups[reason].lines -= 1
        if not groups[reason].lines:
            del groups[reason]
            if not groups:
                del self._batches[line.head.batch_id]

    def groups(self) -> list[FailedGroup]:
        """All groups."""
        return [
            FailedGroup(batch_id, *reason, group.message, group.lines, group.since)
            for batch_id, groups in self._batches.items()
            for reason, group in groups.items()
        ]

    def error(self, server: str) -> str:
        """Why the last call failed there: what the server said, as long as that call's batch has lines here."""
        _, quote = self._quotes.get(server, ("", ""))
        return quote or (found.message if (found := self.latest.get(server)) is not None else "")

    def keep(self, batches: Container[str]) -> None:
        """Forget what servers said to lines of other batches."""
        self._quotes = {
            server: said for server, said in self._quotes.items() if said[0] in batches and server in self.latest
        }

    def _message(self, failure: CallFailure, batch_id: str) -> str:
        if failure.kind is FailureKind.CONNECT:
            return failure.cause
        return "" if self.is_secret(batch_id) else _message(failure)[:MESSAGE_CHARS_MAX]


def _message(failure: CallFailure) -> str:
    """The server's own message; empty if there is none beyond the status."""
    if failure.kind is not FailureKind.STATUS:
        return failure.message
    message = server_error.message(failure.body) if len(failure.body) <= BODY_BYTES_MAX else ""
    return "" if message == failure.message else message
