"""Measures the calls of a model at one server.

The event loop appends each good call to a list, which costs a tenth of a microsecond, and folds many at once.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from tidemill import metrics
from tidemill.instruments import Buckets
from tidemill.processors.failures import CallFailure, FailureKind
from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.schemas.log.codec import LineMark

CALLS_MAX: Final = 1_024
"""Calls in the list, which are folded together."""
_GOOD: Final = "2xx"
_ANSWERED: Final = {number: f"{number}xx" for number in range(2, 6)}
_UNANSWERED: Final = {
    FailureKind.CONNECT: "connect",
    FailureKind.READ: "lost",
    FailureKind.TIMEOUT: "timeout",
    FailureKind.TOO_LARGE: metrics.OTHER,
    FailureKind.UNSUPPORTED_REPLY: metrics.OTHER,
}
"""After any other failure without an answer, no call was made."""
_HUNDRED: Final = 100


@dataclass(slots=True, eq=False)
class CallMetrics:
    """The ended calls of a model at one server, up to the last `folded`; times are seconds."""

    first_byte: Buckets
    """Time to the first byte, of all models of the server."""
    duration: Buckets = field(default_factory=lambda: Buckets(metrics.CALL_SECONDS))
    """How long calls took."""
    waits: Buckets = field(default_factory=lambda: Buckets(metrics.WAIT_SECONDS))
    """How long their lines waited for the first call."""
    ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    """The number of calls by endpoint, and by the class of the reply's status or why there was no reply."""
    lines: int = 0
    """The lines that good calls answered."""
    tokens: int = 0
    """Their tokens, of prompts and answers."""
    overloads: int = 0
    """Calls that the server refused because it was full."""
    _good: list[tuple[str, float, float, float | None, int]] = field(default_factory=list)

    def answered(self, endpoint: str, seconds: float, first_byte: float, wait: float | None, tokens: int) -> None:
        """Count a good call.

        Args:
            endpoint: Its path.
            seconds: How long it took.
            first_byte: Time until the head of the answer.
            wait: Time from the publication of its line, if this was the first call for it.
            tokens: The line's, of prompt and answer.
        """
        self._good.append((endpoint, seconds, first_byte, wait, tokens))
        if len(self._good) >= CALLS_MAX:
            self.folded()

    def failed(self, endpoint: str, failure: CallFailure, seconds: float, wait: float | None) -> None:
        """Count a call that failed, if it was made; see `answered`."""
        self.overloads += failure.is_overload
        if (answer := failure.answer) is not None:
            self.first_byte.observe(answer.first_byte)
            self._count(endpoint, _ANSWERED.get(answer.status // _HUNDRED, metrics.OTHER))
        elif (why := _UNANSWERED.get(failure.kind)) is not None:
            self._count(endpoint, why)
        else:
            return
        self.duration.observe(seconds)
        if wait is not None:
            self.waits.observe(wait)

    def refused(self, endpoint: str, seconds: float) -> None:
        """Count a call for several lines whose reply does not fit them."""
        self._count(endpoint, metrics.OTHER)
        self.duration.observe(seconds)

    def joined(self, lines: int, tokens: int) -> None:
        """Count the other lines of a call that `answered` has counted with one."""
        self.lines += lines
        self.tokens += tokens

    def folded(self) -> Self:
        """These metrics with all calls so far."""
        if not self._good:
            return self
        endpoints, seconds, first_bytes, waits, tokens = zip(*self._good, strict=True)
        self._good.clear()
        self.lines += len(endpoints)
        self.tokens += sum(tokens)
        for endpoint, calls in Counter(endpoints).items():
            self._count(endpoint, _GOOD, calls)
        self.duration.observe_all(seconds)
        self.first_byte.observe_all(first_bytes)
        self.waits.observe_all([wait for wait in waits if wait is not None])
        return self

    def _count(self, endpoint: str, status: str, calls: int = 1) -> None:
        # A path that only a record names gets no time series.
        self.ended[endpoint if endpoint in ENDPOINTS else metrics.OTHER, status] += calls


class LineCounts:
    """The finished lines of a model."""

    def __init__(self) -> None:
        self._lines = [0, 0]
        self._attempts = [0, 0]

    def add(self, marks: Sequence[LineMark]) -> None:
        """Count the lines of a record of outcomes, and their backend calls."""
        if unknown := sum(mark.usage is None for mark in marks):
            metrics.USAGE_UNKNOWN.inc(unknown)
        failed = [mark.attempts for mark in marks if mark.failed]
        self._lines[0] += len(marks) - len(failed)
        self._lines[1] += len(failed)
        self._attempts[0] += sum(mark.attempts for mark in marks) - sum(failed)
        self._attempts[1] += sum(failed)

    @property
    def lines(self) -> dict[str, float]:
        """Lines by outcome."""
        return dict(zip(("completed", "failed"), self._lines, strict=True))

    @property
    def attempts(self) -> dict[str, float]:
        """Calls for them."""
        return dict(zip(("completed", "failed"), self._attempts, strict=True))
