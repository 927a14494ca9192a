"""The trace of a batch: its context in W3C's form, and the choice of lines that have spans of their own."""

import re
from typing import Annotated, Final

from pydantic import StringConstraints

BYTES_MAX: Final = 55
_PATTERN: Final = r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"
_FORM: Final = re.compile(rf"{_PATTERN}\Z")
_SAMPLED: Final = 1
Traceparent = Annotated[str, StringConstraints(pattern=rf"^{_PATTERN}$", max_length=BYTES_MAX)]
"""Source: W3C Trace Context, version 00: trace id, id of the parent span, and flags, of which 1 is `sampled`."""


def parsed(given: bytes | str | None) -> str | None:
    """The context of a record or a request; None if it has none, or a malformed one."""
    text = given.decode("latin-1") if isinstance(given, bytes) else given
    return text if text is not None and len(text) <= BYTES_MAX and _FORM.match(text) else None


def is_sampled(traceparent: str) -> bool:
    """Whether its trace is recorded."""
    return bool(int(traceparent[-2:], 16) & _SAMPLED)


def unsampled(traceparent: str) -> str:
    """The same context for work that records no spans."""
    return f"{traceparent[:-2]}{int(traceparent[-2:], 16) & ~_SAMPLED:02x}"


def has_spans(index: int) -> bool:
    """Whether the calls of a line have spans: ten lines, then each tenth up to 100, each hundredth up to 1,000.

    And so on. Every process chooses the same few lines without knowing the size of the batch: 41 of 50,000.
    """
    step = 1
    while index >= 10 * step:
        step *= 10
    return index % step == 0
