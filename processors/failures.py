"""What came of a call: an answer, or a failure, and whose fault a failure may be."""

from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from typing import Final

from tidemill.processors.memory_budget import Share

CLEAR_FAILURES_MAX: Final = 3
"""From the next one on it may be the line that a server never takes."""
_SUSPECTS: Final = frozenset({408, 409, 424, 425, 429})
_REFUSALS: Final = frozenset({401, 402, 403, 404, 405, 407, 410, 421})


class Kind(Enum):
    """Whose fault a failure may be."""

    OUTAGE = auto()
    """Not the line's: no server has seen it."""
    REFUSAL = auto()
    """The server does not take our key, or does not know our model or address, or refuses this line."""
    SUSPECT = auto()
    """The server is full or broken, or stumbles over this line."""
    FINAL = auto()
    """The line's."""


class Broken(StrEnum):
    """Why a call brought no answer at all; the value is the code of the error line."""

    UNREACHABLE = "backend_unreachable"
    TIMEOUT = "backend_timeout"
    CONNECTION = "backend_connection_lost"
    TOO_LARGE = "backend_reply_too_large"
    LENGTHS = "backend_reply_unsupported"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a backend sent; `retry_after` and `request_id` are headers as they came."""

    status: int
    body: bytes
    request_id: str | None = None
    retry_after: str | None = None
    encoding: str | None = None
    """How the body is compressed, where it could not be decompressed; the body is empty then."""
    share: Share | None = field(default=None, compare=False)
    """Of the budget of replies, where it is a large one; whoever has the answer closes it in the end."""


@dataclass(slots=True)
class Past:
    """The failed calls of a line."""

    since: float
    """When the first of them failed."""
    failures: int = 0
    """Those that reached a server."""
    tries: int = 0
    """Those that counted."""
    refusals: int = 0
    """The same of `Kind.REFUSAL`."""

    pays: bool = False
    """Whether the call that is under way takes from the seats of others."""
    is_clear: bool = False
    """Whether the last of them speaks against the server and not against the line."""

    def note(self, kind: Kind, *, counts: bool, is_full: bool = False) -> None:
        """Add a failed call; `is_full` says that the server had too many."""
        self.failures += kind is not Kind.OUTAGE
        self.is_clear = kind is Kind.OUTAGE or (is_full and not counts and self.failures <= CLEAR_FAILURES_MAX)
        if not counts:
            return
        self.tries += 1 if self.tries else min(2, self.failures)
        if kind is Kind.REFUSAL:
            self.refusals += 1 if self.refusals else min(2, self.failures)


def kind_of(status: int) -> Kind | None:
    """What an HTTP status says; None where it is an answer."""
    if status in _SUSPECTS or status >= 500:  # noqa: PLR2004
        return Kind.SUSPECT
    if status in _REFUSALS or 300 <= status < 400:  # noqa: PLR2004
        return Kind.REFUSAL
    return None
