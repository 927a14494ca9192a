"""Measures the calls of a model at one server.

The event loop appends each good call to a list, which costs a tenth of a microsecond, and folds many at once.
"""

from collections import Counter
from typing import Final

from tidemill import metrics
from tidemill.instruments import Buckets
from tidemill.processors.failures import CallFailure, FailureKind
from tidemill.schemas.endpoints import ENDPOINTS

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


class CallMetrics:
    """The ended calls of a model at one server; times are seconds."""

    __slots__ = ("_duration", "_ended", "_first_byte", "_good", "_lines", "_tokens", "_waits", "overloads")

    def __init__(self, first_byte: Buckets) -> None:
        """Start without calls; `first_byte` is the server's."""
        self._first_byte = first_byte
        self._duration = Buckets(metrics.CALL_SECONDS)
        self._waits = Buckets(metrics.WAIT_SECONDS)
        self._ended: Counter[tuple[str, str]] = Counter()
        self._good: list[tuple[str, float, float, float | None, int]] = []
        self._lines = self._tokens = 0
        self.overloads = 0
        """Calls that the server refused because it was full."""

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
            self._fold()

    def failed(self, endpoint: str, failure: CallFailure, seconds: float, wait: float | None) -> None:
        """Count a call that failed, if it was made; see `answered`."""
        self.overloads += failure.is_overload
        if (answer := failure.answer) is not None:
            self._first_byte.observe(answer.first_byte)
            self._count(endpoint, _ANSWERED.get(answer.status // _HUNDRED, metrics.OTHER))
        elif (why := _UNANSWERED.get(failure.kind)) is not None:
            self._count(endpoint, why)
        else:
            return
        self._duration.observe(seconds)
        if wait is not None:
            self._waits.observe(wait)

    def refused(self, endpoint: str, seconds: float) -> None:
        """Count a call for several lines whose reply does not fit them."""
        self._count(endpoint, metrics.OTHER)
        self._duration.observe(seconds)

    def joined(self, lines: int, tokens: int) -> None:
        """Count the other lines of a call that `answered` has counted with one."""
        self._lines += lines
        self._tokens += tokens

    @property
    def lines(self) -> int:
        """The lines that good calls answered."""
        self._fold()
        return self._lines

    @property
    def tokens(self) -> int:
        """Their tokens, of prompts and answers."""
        self._fold()
        return self._tokens

    @property
    def ended(self) -> Counter[tuple[str, str]]:
        """The number of calls by endpoint, and by the class of the reply's status or why there was no reply."""
        self._fold()
        return self._ended

    @property
    def duration(self) -> Buckets:
        """How long they took."""
        self._fold()
        return self._duration

    @property
    def waits(self) -> Buckets:
        """How long their lines waited for the first call."""
        self._fold()
        return self._waits

    def _fold(self) -> None:
        if not self._good:
            return
        endpoints, seconds, first_bytes, waits, tokens = zip(*self._good, strict=True)
        self._good.clear()
        self._lines += len(endpoints)
        self._tokens += sum(tokens)
        for endpoint, calls in Counter(endpoints).items():
            self._count(endpoint, _GOOD, calls)
        self._duration.observe_all(seconds)
        self._first_byte.observe_all(first_bytes)
        self._waits.observe_all([wait for wait in waits if wait is not None])

    def _count(self, endpoint: str, status: str, calls: int = 1) -> None:
        # A path that only a record names gets no time series.
        self._ended[endpoint if endpoint in ENDPOINTS else metrics.OTHER, status] += calls
