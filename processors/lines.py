"""The lines of a model that have no result on the log yet."""

from tidemill.processors.backends.pool import Backend
from tidemill.processors.failures import Past
from tidemill.processors.partitions.window import Entry
from tidemill.schemas.log.codec import RequestHead


class Line:
    """One line on its way through the stage."""

    __slots__ = (
        "attempts",
        "avoid",
        "begun",
        "entries",
        "head",
        "index",
        "mark",
        "past",
        "seconds",
        "text",
        "why",
    )

    def __init__(self, head: RequestHead, index: int, text: bytes, entry: Entry) -> None:
        self.head = head
        self.index = index
        self.text = text
        """The input line; empty where it lies in the store (`head.ref`)."""
        self.entries = [entry]
        """The records that wait for it: more than one where the log holds it twice."""
        self.attempts = 0
        self.mark = 0.0
        """When it was called first, or failed last, by the event loop's time."""
        self.past: Past | None = None
        """Its failed calls, if there are any."""
        self.begun = self.seconds = 0.0
        """When its last call began, and how long it took."""
        self.avoid: Backend | None = None
        """The backend that it failed at last."""
        self.why: tuple[str, str, int | None] | None = None
        """What failed it last: code, base URL and status."""

    @property
    def size(self) -> int:
        """Bytes of the input line, wherever it lies."""
        return len(self.text) if self.head.ref is None else self.head.ref.length


class Pending:
    """The pending lines of a batch by their index, how many of them have no result yet, and how many got one."""

    __slots__ = ("lines", "open", "settled")

    def __init__(self) -> None:
        self.lines: dict[int, Line] = {}
        self.open = self.settled = 0
