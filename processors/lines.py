"""The lines of a model that have no result on the log yet."""

from tidemill.processors.backends.pool import Backend
from tidemill.processors.failures import FailureKind, History
from tidemill.processors.partitions.window import Entry
from tidemill.schemas.log.codec import RequestHead


class Line:
    """One line from its arrival until the log has its result; times are seconds of the event loop's clock."""

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
        """The input line; empty where it is in the store (`head.ref`)."""
        self.entries = [entry]
        """The records that wait for it: more than one where the log holds it twice."""
        self.attempts = 0
        """Calls made, the one in flight included."""
        self.since = 0.0
        """When it was called first, or failed last."""
        self.history: History | None = None
        """Its failed calls, if there are any."""
        self.began_at = self.seconds = 0.0
        """When its last call began, and how long it took."""
        self.avoid: Backend | None = None
        """The server that failed it last."""
        self.reason: tuple[FailureKind, str, int | None] | None = None
        """Why it waits for another call: kind, server and status of its last failure (`FailedLines`)."""

    @property
    def size(self) -> int:
        """Bytes of the input line, wherever it is."""
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
