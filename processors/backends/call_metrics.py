"""Measures the calls of a model at one server.

The event loop appends each good call to a list, which costs a tenth of a microsecond, and folds many at once.
"""

import logging
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from tidemill import metrics
from tidemill.instruments import Buckets
from tidemill.processors.failures import Answer, CallFailure, FailureKind
from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.schemas.log.codec import LineMark

CALLS_MAX: Final = 1_024
"""Calls in the list, which are folded together."""
RECENT_CALLS: Final = 128
"""Good calls whose times are kept."""
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
_UNUSABLE: Final = "unusable"
_HUNDRED: Final = 100
LOOK_LINES: Final = 100
"""Lines of a model after which a process looks how many of them have failed."""
FAILED_PART_MAX: Final = 0.5
WELL_PART_MAX: Final = 0.25
"""The share of failed lines below which a model is well again."""

_log: Final = logging.getLogger(__name__)


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
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_CALLS))
    """How long the last good calls took."""
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
            self._count(endpoint, _status(failure, answer))
        elif (why := _UNANSWERED.get(failure.kind)) is not None:
            self._count(endpoint, why)
        else:
            return
        self.duration.observe(seconds)
        if wait is not None:
            self.waits.observe(wait)

    def refused(self, endpoint: str, seconds: float) -> None:
        """Count a call for several lines whose reply does not fit them."""
        self._count(endpoint, _UNUSABLE)
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
        self._recent.extend(seconds)
        self.first_byte.observe_all(first_bytes)
        self.waits.observe_all([wait for wait in waits if wait is not None])
        return self

    def usual_seconds(self, part: float) -> float | None:
        """The time in which this part of the last good calls ended; None if there was none."""
        self.folded()
        times = sorted(self._recent)
        return times[min(len(times) - 1, int(part * len(times)))] if times else None

    def _count(self, endpoint: str, status: str, calls: int = 1) -> None:
        # A path that only a record names gets no time series.
        self.ended[endpoint if endpoint in ENDPOINTS else metrics.OTHER, status] += calls


def _status(failure: CallFailure, answer: Answer) -> str:
    """The class of the answer, or of the error in a 2xx; an answer that does not fit its schema is one, too."""
    if failure.kind is FailureKind.ERROR_IN_REPLY and failure.status is None:
        # The server's verdict on the line.
        return _ANSWERED[4]
    status = _ANSWERED.get((failure.status or answer.status) // _HUNDRED, metrics.OTHER)
    return _UNUSABLE if status == _GOOD and failure.kind is not FailureKind.INVALID_OUTPUT else status


class LineCounts:
    """The finished lines of a model; the log says when most of them begin to fail, and when they end to."""

    def __init__(self, model: str = "") -> None:
        self._model = model
        self._seen = [0, 0]
        """The lines since the last look, all and failed ones."""
        self._are_failing = False
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
        self._look(len(marks), len(failed))

    @property
    def lines(self) -> dict[str, float]:
        """Lines by outcome."""
        return dict(zip(("completed", "failed"), self._lines, strict=True))

    @property
    def attempts(self) -> dict[str, float]:
        """Calls for them."""
        return dict(zip(("completed", "failed"), self._attempts, strict=True))

    def _look(self, lines: int, failed: int) -> None:
        self._seen[0] += lines
        self._seen[1] += failed
        lines, failed = self._seen
        if lines < LOOK_LINES:
            return
        self._seen = [0, 0]
        if failed > lines * FAILED_PART_MAX and not self._are_failing:
            self._are_failing = True
            _log.warning(
                "most lines of the model %s fail: %d of the last %d; their batches have the errors",
                self._model, failed, lines,
            )  # fmt: skip
        elif failed < lines * WELL_PART_MAX and self._are_failing:
            self._are_failing = False
            _log.info("lines of the model %s succeed again: %d of the last %d failed", self._model, failed, lines)
