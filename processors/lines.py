"""The pending lines of a model: the log has no result of them yet."""

from tidemill.processors.backends.pool import Backend
from tidemill.processors.failures import FailureKind, History
from tidemill.processors.partitions.window import Entry
from tidemill.schemas.log.codec import RequestHead


class Line:
    """A pending line; times are seconds of the event loop's clock."""

    __slots__ = (
        "attempts",
        "avoid",
        "began_at",
        "entries",
        "head",
        "history",
        "index",
        "reason",
        "seconds",
        "since",
        "text",
    )

    def __init__(self, head: RequestHead, index: int, text: bytes, entry: Entry) -> None:
        self.head = head
        self.index = index
        self.text = text
        """The input line; empty if it is in the store (`head.ref`)."""
        self.entries = [entry]
        """Its records: several if the log has copies of the line."""
        self.attempts = 0
        """Calls made, including the one in flight."""
        self.since = 0.0
        """When it was first called, or last failed."""
        self.history: History | None = None
        """Its failed calls, if any."""
        self.began_at = self.seconds = 0.0
        """When its last call began, and how long it took."""
        self.avoid: Backend | None = None
        """The server that failed it last."""
        self.reason: tuple[FailureKind, str, int | None] | None = None
        """Why it waits for another call: kind, server and status of its last failure (`FailedLines`)."""

    @property
    def size(self) -> int:
        """Bytes of the input line."""
        return len(self.text) if self.head.ref is None else self.head.ref.length


class Pending:
    """The lines of one batch by their index."""

    __slots__ = ("lines", "open", "settled")

    def __init__(self) -> None:
        self.lines: dict[int, Line] = {}
        self.open = 0
        """Lines without a result."""
        self.settled = 0
        """Results so far."""
