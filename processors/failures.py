"""The result of a call: the server's answer, or one value that describes the failure.

`calls/request_codec.py` creates a `CallFailure`, `backends/pool.py` applies it to the server and returns the
`Evidence`, and `calls/retry.py` decides whose fault the failure is and what follows for the line.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Final, NamedTuple

import msgspec

from tidemill.processors.memory_budget import ReplyBytes

UNCERTAIN_OVERLOADS_MAX: Final = 3
"""Refusals of a full server that do not count against a line; a line refused more often may be at fault."""

_SERVER_OR_LINE: Final = frozenset({408, 409, 424, 425, 429})
_ACCESS_OR_LINE: Final = frozenset({401, 402, 403, 404, 405, 407, 410, 421})
_OVERLOAD: Final = frozenset({429, 503, 529})
"""529 is Anthropic's overload."""
_GATEWAYS: Final = frozenset({502, 504})
"""Statuses of a proxy without an answer from the server."""


class FailureKind(StrEnum):
    """How a call failed. The value is the code of the error line."""

    CONNECT = "backend_unreachable"
    """No connection: refused, unknown host, failed TLS handshake, or not within `CONNECT_SECONDS_MAX`."""
    READ = "backend_connection_lost"
    """The connection broke off before the reply was complete, or the reply is not HTTP."""
    TIMEOUT = "backend_timeout"
    TOO_LARGE = "backend_reply_too_large"
    STATUS = "backend_error"
    """The server answered with a status other than 2xx."""
    ERROR_IN_REPLY = "error_in_reply"
    """The server answered with a 2xx that contains an error."""
    BROKEN_OFF = "answer_broken_off"
    """The server answered with a 2xx that contains part of an answer."""
    INVALID_REPLY = "backend_reply_invalid"
    """The reply is not a JSON object; a retry may help."""
    UNSUPPORTED_REPLY = "backend_reply_unsupported"
    """The reply has a form that cannot be delivered; a retry would get the same."""
    INVALID_OUTPUT = "invalid_output"
    """The answer does not fit the JSON Schema of its batch; it is the answer, so there is no retry."""
    NOT_SERVED = "endpoint_not_served"
    """No server of the model serves the endpoint."""
    INVALID_LINE = "invalid_line"
    INPUT_GONE = "input_gone"
    STORE = "store_unavailable"
    KEY = "key_unavailable"
    """The line is in the store, sealed with a key that cannot be unwrapped now."""
    INTERNAL = "internal_error"


NOT_FETCHED: Final = frozenset({FailureKind.STORE, FailureKind.KEY})
"""Failures to fetch a line, which say nothing about a server."""
NOT_MADE: Final = NOT_FETCHED | {FailureKind.INVALID_LINE, FailureKind.INPUT_GONE, FailureKind.INTERNAL}
"""Failures before a call was made."""


class Fault(Enum):
    """Whose fault a failure is; the evidence decides between the two parties of the last two kinds."""

    LINE = auto()
    SERVER = auto()
    """The server's, the network's or the store's, or that of a key file."""
    ACCESS = auto()
    """The server rejects our key, or does not know our model or address."""
    SERVER_OR_LINE = auto()
    ACCESS_OR_LINE = auto()


_FAULTS: Final = {
    FailureKind.CONNECT: Fault.SERVER,
    FailureKind.STORE: Fault.SERVER,
    FailureKind.KEY: Fault.SERVER,
    FailureKind.TIMEOUT: Fault.SERVER_OR_LINE,
    FailureKind.READ: Fault.SERVER_OR_LINE,
    FailureKind.BROKEN_OFF: Fault.SERVER_OR_LINE,
    FailureKind.INVALID_REPLY: Fault.SERVER_OR_LINE,
    FailureKind.INTERNAL: Fault.SERVER_OR_LINE,
}
_STATUS_COUNTS: Final = frozenset({FailureKind.STATUS, FailureKind.ERROR_IN_REPLY})


class Answer(msgspec.Struct, frozen=True):
    """The answer of a server; `request_id`, `retry_after`, `media_type` and `location` are headers, unchecked."""

    status: int
    body: bytes
    request_id: str | None = None
    retry_after: str | None = None
    encoding: str | None = None
    """The content encoding, if the body could not be decompressed and is left empty."""
    share: ReplyBytes | None = None
    """A large reply's share of the memory budget; the owner of the answer closes it."""
    first_byte: float = 0.0
    """Seconds from the sent request to the head of the answer."""
    media_type: str | None = None
    location: str | None = None


class CallFailure(msgspec.Struct, frozen=True):
    """A failed call; answers to calls that began between `since` and `at`, by the loop's clock, are evidence."""

    kind: FailureKind
    message: str
    status: int | None = None
    """The status of the answer, or of the error in a 2xx."""
    answer: Answer | None = None
    body: bytes = b""
    """The body of the answer, as a JSON object."""
    cause: str = ""
    """Why no connection could be opened, in fixed words."""
    server: str = ""
    """The name of the server."""
    endpoint: str = ""
    """The path, like `/v1/embeddings`."""
    line: tuple[str, int] = ("", -1)
    """Batch and index; a health probe has no batch."""
    since: float = 0.0
    """When the line was first called, or last failed before."""
    at: float = 0.0
    """When it failed."""
    retry_after: float | None = None
    """Seconds that the server asked to wait."""
    is_shared: bool = False
    """Whether the call was for other lines, too: its failure proves nothing about a single line."""

    @property
    def fault(self) -> Fault:
        """Whose fault it may be, without evidence."""
        if self.status is not None and self.kind in _STATUS_COUNTS:
            return fault_of(self.status)
        return _FAULTS.get(self.kind, Fault.LINE)

    @property
    def is_overload(self) -> bool:
        """Whether the server says that it has too many calls."""
        return self.status in _OVERLOAD

    @property
    def is_timeout(self) -> bool:
        """Whether the server did not answer in time."""
        return self.kind is FailureKind.TIMEOUT

    @property
    def is_full(self) -> bool:
        """Whether the server has too many calls, by its status or by a timeout."""
        return self.is_timeout or self.is_overload

    @property
    def is_servers_word(self) -> bool:
        """Whether the server itself accepted the call and answered that it failed."""
        return self.answer is not None and not self.is_overload and self.status not in _GATEWAYS

    @property
    def share(self) -> ReplyBytes | None:
        """The answer's share of the memory budget."""
        return None if self.answer is None else self.answer.share


class Evidence(NamedTuple):
    """The evidence of other calls about a server when a call fails."""

    others_answered: bool = False
    """Whether it answered another call of the endpoint that began after `CallFailure.since`."""
    refuses_many: bool = False
    """Whether it refuses more than `pool.REFUSED_PART_MAX` of all calls as too many."""
    refuses_repeatedly: bool = True
    """Whether refusals are frequent enough to mean that it is full; see `ConcurrencyLimit`."""
    other_is_well: bool = False
    """Whether another server of the model accepts calls."""


NO_EVIDENCE: Final = Evidence()


@dataclass(slots=True)
class History:
    """The failed calls of a line."""

    since: float
    """When the first of them failed, by the event loop's clock."""
    failures: int = 0
    """Calls that may have reached a server."""
    counted: int = 0
    """Failures that count against the line."""
    refusals: int = 0
    """Counted failures with `Fault.ACCESS_OR_LINE`."""

    is_charged: bool = False
    """Whether the call in flight takes the place of a line that has not failed."""
    is_clear: bool = False
    """Whether the last failure was the server's fault."""

    def note(self, failure: CallFailure, *, counts: bool) -> None:
        """Add a failed call; `counts` says whether it counts against the line.

        With the first failure that counts, the one before it counts, too: the server has answered others since
        then.
        """
        fault = failure.fault
        self.failures += fault is not Fault.SERVER and not failure.is_shared
        self.is_clear = fault is Fault.SERVER or (
            failure.is_overload and not counts and self.failures <= UNCERTAIN_OVERLOADS_MAX
        )
        if not counts:
            return
        self.counted += 1 if self.counted else min(2, self.failures)
        if fault is Fault.ACCESS_OR_LINE:
            self.refusals += 1 if self.refusals else min(2, self.failures)


def fault_of(status: int) -> Fault:
    """Whose fault a status other than 2xx may be."""
    if status in _SERVER_OR_LINE or status >= 500:  # noqa: PLR2004
        return Fault.SERVER_OR_LINE
    if status in _ACCESS_OR_LINE or 300 <= status < 400:  # noqa: PLR2004
        return Fault.ACCESS_OR_LINE
    return Fault.LINE
